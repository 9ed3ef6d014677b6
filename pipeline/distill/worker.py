"""The process that distils: `python -m pipeline.distill.worker TASK JOB.json RESULT.json`.

    student   cut the student from the teacher          cache   let the teacher read the text, keep what it says
    train     train the student; started again, it goes on from its newest checkpoint

With several GPUs `train` runs in as many processes, below `python -m torch.distributed.run`. Exit code 143: SIGTERM
ended the training, a checkpoint is written.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from core.errors import ParsimonyError
from core.files import read_json, write_json
from pipeline.compress.worker import peak_device_bytes
from pipeline.config import DistillConfig
from pipeline.distill.student_size import config_from

STARTED = time.monotonic()
LOGITS_BYTES = 2**29
"""Most bytes of a teacher's logits at once while the cache is written."""


def cut_student(job: Mapping[str, Any]) -> dict[str, Any]:
    """The `student` task."""
    import numpy as np

    from pipeline.config import StudentConfig
    from pipeline.distill.students import make_student

    tokens = None if job["tokens"] is None else np.load(job["tokens"], allow_pickle=False)
    return make_student(Path(job["teacher"]), tokens, StudentConfig(**job["student"]), Path(job["output"]))


def fill_cache(job: Mapping[str, Any]) -> dict[str, Any]:
    """The `cache` task."""
    import numpy as np
    import torch

    from pipeline.distill.module import load_model
    from pipeline.distill.teacher_cache import write_cache
    from pipeline.distill.train import print_line

    rows = np.load(job["rows"], allow_pickle=False)
    device, dtype = teacher_placement()
    model = load_model(Path(job["teacher"]), dtype).to(device).eval()

    def predict(tokens: Any) -> Any:
        with torch.inference_mode():
            return model(input_ids=torch.from_numpy(tokens).to(device), use_cache=False).logits.float()

    row_bytes = 4 * (rows.shape[1] - 1) * model.config.vocab_size
    return write_cache(
        rows,
        predict,
        Path(job["output"]),
        top_k=job["top_k"],
        temperature=job["temperature"],
        batch_size=max(1, LOGITS_BYTES // row_bytes),
        on_row=lambda done, total: print_line(f"sequence {done}/{total}"),
    )


def train(job: Mapping[str, Any]) -> dict[str, Any] | None:
    """The `train` task; only the first process has a result."""
    import numpy as np
    import torch

    from pipeline.distill.checkpoint import BackgroundWriter, CheckpointStore
    from pipeline.distill.data import Samples
    from pipeline.distill.preemption import Books, StopSignal, summary
    from pipeline.distill.progress import peak_flops
    from pipeline.distill.teacher_cache import TeacherCache
    from pipeline.distill.train import DistillTrainer, print_line, run_training, training_arguments

    config = config_from(job["config"])
    stop = StopSignal(config.spot.grace_s)
    stop.install()
    work = Path(job["work"])
    arguments = training_arguments(config, job["seed"], work)
    first = arguments.process_index == 0
    say = print_line if first else lambda _: None
    store = CheckpointStore(job["url"], config.spot.keep)
    store.check_plan(job["plan_hash"], job["plan"])
    found, skipped = store.newest(work / f"resume-{arguments.process_index}")
    for one in skipped:
        say(f"checkpoint {one.name} is skipped: {one.reason}")
    if found is not None:
        say(f"going on from step {found.step}")
    agree_on(None if found is None else found.step)
    if first:
        store.remove_after(0 if found is None else found.step)
    resumed = None if found is None else (found.step, found.meta)
    books = Books.open(store, config.spot, job["purchase_option"], job["usd_per_hour"], resumed, STARTED)
    module, teacher, per_token = build(job, config, arguments.device)
    cache = None if job["cache"] is None else TeacherCache(Path(job["cache"]))
    ignored = config.data.prompt_tokens - 1 if config.data.mode != "text" else 0
    rows = np.load(job["rows"], allow_pickle=False)
    num_samples = config.train.num_steps * config.train.batch_size
    samples = Samples(rows, num_samples, config.data.seed, num_ignored=ignored, cache=cache)
    peak, source = peak_flops(arguments.device, torch.bfloat16 if arguments.bf16 else torch.float32)
    trainer = DistillTrainer(
        module,
        arguments,
        samples,
        config=config,
        teacher=teacher,
        writer=BackgroundWriter(store, lambda one: say(f"checkpoint of step {one.step} is written")),
        books=books,
        stop=stop,
        meta={"plan_hash": job["plan_hash"], "plan": job["plan"]},
        say=say,
        flops=(per_token, peak),
        end_token=job["end_token"],
    )
    try:
        run_training(trainer, found)
    except BaseException:
        if first:
            books.beat(trainer.state.global_step, ended="sigterm" if stop.received else "failed", wait=True)
        raise
    weights = trainer.weights()
    if not first:
        return None
    save_student(weights, job)
    books.beat(trainer.state.global_step, ended="finished", wait=True)
    rates = [point["tokens_per_s"] for point in trainer.curve]
    rate = sorted(rates)[len(rates) // 2]
    return {
        "num_steps": trainer.state.global_step,
        "tokens_seen": trainer.state.global_step * config.train.batch_size * config.data.length,
        "curve": trainer.curve,
        "final_loss": trainer.curve[-1]["loss"],
        "tokens_per_s": rate,
        "mfu": rate * per_token / (peak * arguments.world_size),
        "peak_flops": peak,
        "peak_flops_source": source,
        "checkpoints": [vars(one) for one in trainer._writer.written],
        "skipped_checkpoints": [vars(one) for one in skipped],
        **summary(books.attempts),
    }


def build(job: Mapping[str, Any], config: DistillConfig, device: Any) -> tuple[Any, Any, float]:
    """The student in its module, the live teacher (or None), and the FLOPs of a token."""
    import torch
    from transformers import set_seed

    from pipeline.distill.module import DistillModule, Teacher, hidden_matches, load_model
    from pipeline.distill.progress import flops_per_token

    set_seed(job["seed"])
    student = load_model(Path(job["student"]), torch.float32)
    per_token = flops_per_token(student, config.data.length, backward=True)
    teacher, head, matches = None, None, None
    if config.needs_teacher and job["cache"] is None:
        _, dtype = teacher_placement()
        model = load_model(Path(job["teacher"]), dtype).to(device)
        per_token += flops_per_token(model, config.data.length, backward=False)
        teacher = Teacher(model, with_states=config.objective.hidden_weight > 0)
        head = teacher.head
        if config.objective.hidden_weight > 0:
            layers = (student.config.num_hidden_layers, model.config.num_hidden_layers)
            matches = hidden_matches(*layers, job["dropped_layers"])
    if config.train.gradient_checkpointing:
        student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    module = DistillModule(student, config.objective, config.train.chunk_tokens, teacher_head=head, matches=matches)
    return module, teacher, per_token


def save_student(weights: Mapping[str, Any], job: Mapping[str, Any]) -> None:
    """Write the student as a checkpoint folder in Hugging Face form, in the type that it came in."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(job["student"])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    stored = model.dtype
    model.float()
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, tensor in weights.items():
            named[name].copy_(tensor)
    model.to(stored)
    model.config.use_cache = True
    model.save_pretrained(job["output"])
    AutoTokenizer.from_pretrained(folder).save_pretrained(job["output"])


def teacher_placement() -> tuple[str, Any]:
    """Where a frozen teacher computes, and in which type: most processors compute bfloat16 slowly."""
    import torch

    if torch.cuda.is_available():
        return "cuda", torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return "cpu", torch.float32


def agree_on(step: int | None) -> None:
    """Check that all processes go on from the same step, and wait for all of them."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return
    steps: list[int | None] = [None] * dist.get_world_size()
    dist.all_gather_object(steps, step)
    assert len(set(steps)) == 1, f"the processes see different checkpoints: {steps}"


TASKS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any] | None]] = {
    "student": cut_student,
    "cache": fill_cache,
    "train": train,
}


def main(task: str, job_path: Path, result_path: Path) -> int:
    """Run a task and report what it measured, with its time and peak memory."""
    try:
        result = TASKS[task](read_json(job_path))
    except ParsimonyError as error:
        sys.stdout.write(f"{error}\n")
        sys.stdout.flush()
        if os.environ.get("RANK", "0") == "0":  # the first process knows which checkpoint is written
            write_json(result_path.with_suffix(".error.json"), {"kind": type(error).__name__, "message": str(error)})
        return error.exit_code
    if result is not None:
        wall_s = time.monotonic() - STARTED
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        measured = {"wall_s": wall_s, "peak_host_bytes": peak, "peak_device_bytes": peak_device_bytes()}
        write_json(result_path, {**measured, **result})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))

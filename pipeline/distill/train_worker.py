"""The process that trains a student: `core.jobs` calls `train`. Started again, it goes on from its newest checkpoint.

With several GPUs it runs in as many processes, below `python -m torch.distributed.run`; only the first of them has a
result. Exit code 143: SIGTERM ended the training, a checkpoint is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from core.jobs import STARTED
from pipeline.config import DistillConfig
from pipeline.distill.arguments import training_arguments
from pipeline.distill.background import BackgroundWriter
from pipeline.distill.checkpoint import CheckpointStore
from pipeline.distill.data import Samples
from pipeline.distill.module import DistillModule, Teacher, hidden_matches, load_model
from pipeline.distill.preemption import Books, StopSignal, summary
from pipeline.distill.process import TrainJob
from pipeline.distill.progress import flops_per_token, peak_flops, print_line
from pipeline.distill.student_size import config_from
from pipeline.distill.teacher_cache import TeacherCache
from pipeline.distill.train import DistillTrainer, run_training
from pipeline.distill.worker import measured, teacher_placement


def train(job: TrainJob) -> dict[str, object] | None:
    """The `train` task; only the first process has a result."""
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
    result = {
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
    return measured(result)


def build(job: TrainJob, config: DistillConfig, device: torch.device) -> tuple[DistillModule, Teacher | None, float]:
    """The student in its module, the live teacher (or None), and the FLOPs of a token."""
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


def save_student(weights: Mapping[str, Tensor], job: TrainJob) -> None:
    """Write the student as a checkpoint folder in Hugging Face form, in the type that it came in."""
    folder = Path(job["student"])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    stored = model.dtype
    # The trained weights are float32: copied whole, and rounded once, below.
    model.float()
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, tensor in weights.items():
            named[name].copy_(tensor)
    model.to(stored)
    model.config.use_cache = True
    model.save_pretrained(job["output"])
    AutoTokenizer.from_pretrained(folder).save_pretrained(job["output"])


def agree_on(step: int | None) -> None:
    """Check that all processes go on from the same step, and wait for all of them."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    steps: list[int | None] = [None] * dist.get_world_size()
    dist.all_gather_object(steps, step)
    assert len(set(steps)) == 1, f"the processes see different checkpoints: {steps}"

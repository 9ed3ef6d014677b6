r"""Distillation measured: its step against a plain loop, checkpoints, the cached teacher; and what it wins in quality.

    python -m benchmarks.distill speed --model FOLDER --work FOLDER --out benchmarks/results/distill-speed.md
    python -m benchmarks.distill quality --model FOLDER --eval-text TEST.txt --work FOLDER \
        --out benchmarks/results/distill-quality.md

FOLDER is a checkpoint in Hugging Face form (`ls -d ~/.cache/parsimony/store/base/*/model` after any run).

`speed` compares in pairs, alternating the two sides so that a machine's drift falls on both, and prints the mean ratio
with a bootstrap interval over the pairs: (1) the Trainer's optimizer step against a plain PyTorch loop of the same
module, loss, optimizer and clipping; (2) a step beside the live teacher against one on a cached teacher; (3) what a
checkpoint every 50 steps adds: a run with a checkpoint every 8 steps against one without, the difference shared out to
its checkpoints, over 50 median steps.

`quality` gives distillation and plain fine-tuning the same budget of processor time (`--budget-s` x cores, by default
20 minutes), from the same student, on the same text in the same order, at the same learning rate. The number of steps
of each comes from a calibration of its processor seconds per step. Perplexity is over windows of the evaluation texts;
ARC-Easy and PIQA are lm-eval's, asked in process (benchmarks/answers.py). Intervals are 95% bootstrap intervals, the
last row's are paired.

Everything measured is kept in --work: with `--limit-s 280` a call ends after about that time, and the next goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.answers import answers_file, ask
from core.environments import ROOT, versions
from core.files import plain, read_json, write_json
from core.store import StageStore
from pipeline.checkpoints.facts import facts_from_folder
from pipeline.checkpoints.folder import checkpoint_digest
from pipeline.cli.app import run_command
from pipeline.config import CalibConfig, DistillConfig, EngineConfig
from pipeline.distill.results import MachinePrice
from pipeline.distill.student_size import config_from
from pipeline.plan.machine import find_machine
from pipeline.stages.base import local_checkpoint
from pipeline.stages.data import Datasets
from pipeline.stages.distill import Distill, distill_stage
from pipeline.stages.graph import Effects

NUM_RESAMPLES = 2000
WINDOW = 512
CHECKPOINT_EVERY = 8
STEP_TOLERANCE, CHECKPOINT_TOLERANCE, CACHE_FACTOR = 1.05, 1.03, 1.5


class OutOfTimeError(Exception):
    """The call's time is up; the next one goes on."""


class Kept:
    """Measurements in a JSON file: each is made once, whatever the number of calls."""

    def __init__(self, path: Path, limit_s: float | None) -> None:
        self._path = path
        self._values: dict[str, Any] = read_json(path) if path.exists() else {}
        self._deadline = None if limit_s is None else time.monotonic() + limit_s

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """The measurement of this name."""
        if name not in self._values:
            self.check_time()
            self._values[name] = plain(make())
            write_json(self._path, self._values)
        return self._values[name]

    def check_time(self) -> None:
        """End the call when its time is up."""
        if self.left_s is not None and self.left_s <= 0:
            raise OutOfTimeError

    @property
    def left_s(self) -> float | None:
        """Seconds left of this call; None without a limit."""
        return None if self._deadline is None else self._deadline - time.monotonic()


def only_steps(line: str) -> None:
    """Show a training's step lines."""
    if line.startswith("step"):
        print(line, flush=True)


def a_config(arguments: argparse.Namespace, objective: str, **train: Any) -> DistillConfig:
    """The benchmark's distillation; `objective` is `distill`, `cached` or `fine-tune`."""
    config = DistillConfig(name=objective)
    config.student.drop_fraction = arguments.drop_fraction
    config.data.sources = [str(Path(one).resolve()) if Path(one).exists() else one for one in arguments.text]
    config.data.length = arguments.length
    config.train.batch_size = config.train.micro_batch_size = arguments.batch_size
    config.train.learning_rate = arguments.learning_rate
    config.teacher.mode = "cached" if objective == "cached" else "live"
    if objective == "fine-tune":
        config.objective.divergence, config.objective.cross_entropy_weight = "none", 1.0
    for key, value in train.items():
        setattr(config.train, key, value)
    return config


# ---- speed


@dataclasses.dataclass
class Parts:
    """What a step needs, made once."""

    job: Any
    """Of a `TrainJob` what makes the module."""
    rows: Any
    cache: Path


def stages_of(
    model: Path, config: DistillConfig, calib: CalibConfig, store: StageStore, say: Callable[[str], None] = print
) -> tuple[Distill, Effects]:
    """The product's own distill stage of a teacher in a folder, with all that it needs, and what runs it."""
    stage = distill_stage(
        local_checkpoint(model, store),
        config,
        calib,
        0,
        facts=facts_from_folder("teacher", model),
        price=MachinePrice(),
        engine=EngineConfig(),
        machine=find_machine(),
        serving_python=Path(sys.executable),
        store=store,
    )
    return stage, Effects(store, store.root.parent, Path(sys.executable), say=say)


def prepare(arguments: argparse.Namespace, store: StageStore) -> Parts:
    """The student, the packed text and the teacher's cache, by the product's own stages."""
    config = a_config(arguments, "cached")
    config.data.max_tokens = arguments.length * arguments.batch_size * 16
    calib = CalibConfig(sources=config.data.sources, num_samples=4, length=256)
    stage, effects = stages_of(Path(arguments.model), config, calib, store)
    assert stage.cache is not None
    job = {
        "teacher": effects.result(stage.base).path,
        "student": effects.result(stage.student).path,
        "dropped_layers": effects.found(stage.student).result["dropped_layers"],
        "seed": 0,
        "cache": None,
    }
    return Parts(job, np.load(effects.result(stage.rows), allow_pickle=False), effects.result(stage.cache))


def step_times(
    arguments: argparse.Namespace, parts: Parts, objective: str, num_steps: int, every_steps: int, folder: Path
) -> list[float]:
    """Seconds of each optimizer step of a run under the Trainer, but for the first one, and of the run's end."""
    import shutil

    import torch
    from transformers import TrainerCallback

    from pipeline.distill import train_worker
    from pipeline.distill.arguments import training_arguments
    from pipeline.distill.background import BackgroundWriter
    from pipeline.distill.checkpoint import CheckpointStore
    from pipeline.distill.data import Samples
    from pipeline.distill.preemption import Books, StopSignal
    from pipeline.distill.teacher_cache import TeacherCache
    from pipeline.distill.train import DistillTrainer, run_training

    config = a_config(arguments, objective, num_steps=num_steps)
    config.spot.every_steps = every_steps
    job: Any = {**parts.job, "cache": parts.cache if objective == "cached" else None}
    settings = training_arguments(config, 0, folder)
    module, teacher, per_token = train_worker.build(job, config, settings.device)
    cache = TeacherCache(parts.cache) if objective == "cached" else None
    samples = Samples(parts.rows, num_steps * config.train.batch_size, 0, cache=cache)
    store = CheckpointStore(str(folder / "checkpoints"))
    books = Books.open(store, config.spot, "on_demand", None, None, time.monotonic())
    trainer = DistillTrainer(
        module,
        settings,
        samples,
        config=config,
        teacher=teacher,
        writer=BackgroundWriter(store),
        books=books,
        stop=StopSignal(25),
        meta={"plan_hash": "benchmark", "plan": {}},
        say=lambda line: None,
        flops=(per_token, 1.0),
        end_token=0,
    )
    ends = [time.perf_counter()]

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    trainer.add_callback(Clock())
    run_training(trainer, None)
    ends.append(time.perf_counter())
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return list(np.diff(ends)[1:])


def plain_times(arguments: argparse.Namespace, parts: Parts, num_steps: int) -> list[float]:
    """Seconds of each step of a plain PyTorch loop: same module, loss, optimizer, clipping and schedule."""
    import torch
    from transformers import get_cosine_schedule_with_warmup

    from pipeline.distill import train_worker
    from pipeline.distill.data import Samples, collate

    config = a_config(arguments, "distill", num_steps=num_steps)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    module, teacher, _ = train_worker.build(parts.job, config, device)
    assert teacher is not None, "the objective distill has a live teacher"
    module.to(device).train()
    size, length = config.train.batch_size, config.data.length
    samples = Samples(parts.rows, num_steps * size, 0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=config.train.learning_rate, weight_decay=0.0, fused=on_gpu)
    warmup = math.ceil(config.train.warmup_fraction * num_steps)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, num_steps)
    seconds = []
    for step in range(num_steps):
        started = time.perf_counter()
        batch = {
            key: value.to(device) for key, value in collate([samples[step * size + i] for i in range(size)]).items()
        }
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=on_gpu):
            side = teacher(batch["input_ids"])
            loss = module(**batch, **side)["loss"] / (size * length)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.train.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def speed(arguments: argparse.Namespace, kept: Kept, store: StageStore) -> list[str]:
    """The three paired comparisons, as lines of a table."""
    parts = prepare(arguments, store)
    work = Path(arguments.work)
    sides: dict[str, Callable[[], list[float]]] = {
        "trainer": lambda: step_times(arguments, parts, "distill", arguments.steps, 10**6, work / "run"),
        "plain": lambda: plain_times(arguments, parts, arguments.steps),
        "cached": lambda: step_times(arguments, parts, "cached", arguments.steps, 10**6, work / "run"),
        "checkpoints": lambda: step_times(
            arguments, parts, "distill", arguments.checkpoint_steps, CHECKPOINT_EVERY, work / "run"
        ),
        "no checkpoints": lambda: step_times(
            arguments, parts, "distill", arguments.checkpoint_steps, 10**6, work / "run"
        ),
    }
    num_checkpoints = (arguments.checkpoint_steps - 1) // CHECKPOINT_EVERY  # both runs end with one more

    def of_medians(left: list[float], right: list[float]) -> float:
        first, second = (np.median(side[: arguments.steps - 1]) for side in (left, right))  # without the run's end
        return float(first / second)

    def of_checkpoints(left: list[float], right: list[float]) -> float:
        return float(1 + (np.sum(left) - np.sum(right)) / num_checkpoints / (50 * np.median(right)))

    pairs = (
        ("Trainer / plain loop, median step", "trainer", "plain", of_medians, f"<= {STEP_TOLERANCE}"),
        ("live / cached teacher, median step", "trainer", "cached", of_medians, f">= {CACHE_FACTOR}"),
        ("checkpoint every 50 / none", "checkpoints", "no checkpoints", of_checkpoints, f"<= {CHECKPOINT_TOLERANCE}"),
    )
    lines = ["| comparison | ratio | 95% interval | pairs | bar |", "|---|---|---|---|---|"]
    for name, left, right, ratio, bar in pairs:
        ratios = []
        for repeat in range(arguments.repeats):
            order = (left, right) if repeat % 2 == 0 else (right, left)
            found = {side: kept.get(f"{name} {repeat} {side}", sides[side]) for side in order}
            ratios.append(ratio(found[left], found[right]))
        lo, hi = bootstrap(np.array(ratios))
        lines.append(f"| {name} | {np.mean(ratios):.3f} | {lo:.3f} to {hi:.3f} | {len(ratios)} | {bar} |")
    return lines


def bootstrap(values: NDArray[np.float64]) -> tuple[float, float]:
    """A 95% percentile interval of the mean."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), size=(NUM_RESAMPLES, len(values)))].mean(axis=1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


# ---- quality


def cpu_s_per_step(arguments: argparse.Namespace, parts: Parts, objective: str, work: Path) -> float:
    """Processor seconds (all cores) of one optimizer step, after warm-up; on a GPU its wall seconds."""
    import torch

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime

    few, more = 3, 3 + arguments.calibration_steps
    if torch.cuda.is_available():
        return float(np.median(step_times(arguments, parts, objective, more, 10**6, work)))
    before = spent()
    step_times(arguments, parts, objective, few, 10**6, work)
    between = spent()
    step_times(arguments, parts, objective, more, 10**6, work)
    return float(((spent() - between) - (between - before)) / (more - few))


def train_arm(arguments: argparse.Namespace, kept: Kept, home: Path, objective: str, num_steps: int) -> dict[str, Any]:
    """Train one arm in a process of its own; ends with the call's time, and goes on in the next."""
    given = home / f"{objective}.json"
    config = a_config(arguments, objective, num_steps=num_steps)
    write_json(given, {"model": arguments.model, "home": home, "config": config, "out": home / f"{objective}.out.json"})
    command = [sys.executable, "-m", "benchmarks.distill", "arm", "--given", str(given)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, cwd=ROOT)
    try:
        process.wait(kept.left_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise OutOfTimeError from None
    if process.returncode != 0:
        raise SystemExit(f"{objective} failed with exit code {process.returncode}")
    return dict(read_json(home / f"{objective}.out.json"))


def arm(given_path: Path) -> int:
    """The process of one arm: the product's own stage."""

    def main(_: list[str]) -> int:
        given = read_json(given_path)
        store = StageStore(Path(given["home"]) / "store")
        config = config_from(given["config"])
        calib = CalibConfig(sources=config.data.sources, num_samples=8, length=512)
        stage, effects = stages_of(Path(given["model"]), config, calib, store, only_steps)
        artifact, made = effects.result(stage), effects.found(stage)
        write_json(Path(given["out"]), {"path": artifact.path, "digest": artifact.digest, "result": made.result})
        return 0

    return run_command(main, [])


def window_nats(folder: Path, text: Path, num_windows: int) -> list[float]:
    """Mean negative log-likelihood per token of each window of the text, in nats."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text.read_text(), add_special_tokens=False).ids
    count = min(num_windows, (len(ids) - 1) // WINDOW)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    nats = []
    with torch.inference_mode():
        for number in range(count):
            window = torch.tensor(ids[number * WINDOW : (number + 1) * WINDOW + 1], device=device)
            logits = model(input_ids=window[None, :-1]).logits[0].float()
            nats.append(float(torch.nn.functional.cross_entropy(logits, window[1:])))
    return nats


def task_scores(folder: Path, home: Path, wanted: dict[str, int | None]) -> dict[str, list[float]]:
    """Scores item by item, by lm-eval's tasks."""
    name, out = checkpoint_digest(folder)[:12], home / "answers"
    data = Effects(StageStore(home / "store"), home, Path(sys.executable)).result(Datasets())
    ask(name, folder, wanted, data, out)
    found = {task: read_json(answers_file(out, name, task))["items"] for task in wanted}
    return {
        task: [item["score"] for item in sorted(items, key=lambda one: one["item_id"])] for task, items in found.items()
    }


def quality(arguments: argparse.Namespace, kept: Kept, store: StageStore) -> list[str]:
    """The table of the four models, with intervals; differences are paired."""
    home = Path(arguments.work)
    config = a_config(arguments, "distill")
    calib = CalibConfig(sources=config.data.sources, num_samples=8, length=512)
    stage, effects = stages_of(Path(arguments.model), config, calib, store)
    parts = prepare(arguments, store)
    budget = arguments.budget_s * (1 if find_machine().device == "cuda" else find_machine().num_cpus)
    models: dict[str, Path] = {
        "teacher": Path(arguments.model).resolve(),
        "student before": effects.result(stage.student).path,
    }
    steps = {}
    for objective in ("distill", "fine-tune"):
        cost = kept.get(f"seconds per step {objective}", partial(cpu_s_per_step, arguments, parts, objective, home))
        steps[objective] = max(1, round(budget / cost))
        made = kept.get(f"arm {objective}", partial(train_arm, arguments, kept, home, objective, steps[objective]))
        models[f"student after {objective}"] = Path(made["path"])
    nats = {
        (name, text): np.array(
            kept.get(f"nats {name} {text}", partial(window_nats, folder, Path(text), arguments.windows))
        )
        for name, folder in models.items()
        for text in arguments.eval_text
    }
    wanted = {
        task: int(number) if number else None for task, _, number in (one.partition("=") for one in arguments.task)
    }
    scores = {
        name: kept.get(f"scores {name}", partial(task_scores, folder, home, wanted))
        for name, folder in models.items()
        if wanted
    }
    dropped = effects.found(stage.student).result["dropped_layers"]
    lines = [f"Layers removed: {dropped}. Budget: {budget:.0f} processor seconds; steps: {steps}.", ""]
    return lines + quality_table(models, nats, scores, arguments.eval_text)


def quality_table(models: Any, nats: Any, scores: Any, texts: list[str]) -> list[str]:
    """Rows with 95% bootstrap intervals, and the paired difference of the two arms."""
    tasks = sorted(next(iter(scores.values()), {}))
    columns = [f"perplexity {Path(text).stem}" for text in texts] + tasks
    lines = [f"| model | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in models:
        cells = []
        for text in texts:
            values = nats[name, text]
            lo, hi = bootstrap(values)
            cells.append(f"{math.exp(values.mean()):.1f} ({math.exp(lo):.1f} to {math.exp(hi):.1f})")
        for task in tasks:
            values = np.array(scores[name][task])
            lo, hi = bootstrap(values)
            cells.append(f"{values.mean():.3f} ({lo:.3f} to {hi:.3f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    cells = []
    left, right = "student after distill", "student after fine-tune"
    for text in texts:
        difference = nats[left, text] - nats[right, text]
        lo, hi = bootstrap(difference)
        cells.append(f"x{math.exp(difference.mean()):.3f} ({math.exp(lo):.3f} to {math.exp(hi):.3f})")
    for task in tasks:
        difference = np.array(scores[left][task]) - np.array(scores[right][task])
        lo, hi = bootstrap(difference)
        cells.append(f"{difference.mean():+.3f} ({lo:+.3f} to {hi:+.3f})")
    lines.append(f"| distill against fine-tune | {' | '.join(cells)} |")
    return lines


def write_report(arguments: argparse.Namespace, lines: list[str]) -> None:
    """The table with hardware, versions and settings."""
    machine = find_machine()
    settings = {key: value for key, value in vars(arguments).items() if key not in ("work", "out", "limit_s", "model")}
    settings["text"] = [Path(text).name for text in arguments.text]
    if arguments.command == "quality":
        settings["eval_text"] = [Path(text).name for text in arguments.eval_text]
    head = [
        f"# Distillation: {arguments.command}",
        "",
        f"{datetime.datetime.now(datetime.UTC).date()}; {machine.device_name}, {machine.num_cpus} CPUs; "
        f"Python {platform.python_version()}; {versions(Path(sys.executable), 'torch', 'transformers', 'accelerate')}",
        "",
        "`" + json.dumps(plain(settings)) + "`",
        "",
    ]
    text = "\n".join([*head, *lines]) + "\n"
    print(text)
    if arguments.out:
        Path(arguments.out).write_text(text)


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("speed", "quality", "arm"))
    parser.add_argument("--given", help=argparse.SUPPRESS)
    parser.add_argument("--model", help="checkpoint folder of the teacher")
    parser.add_argument("--text", nargs="+", default=["squad", "coqa", "drop", "lambada"], help="what to train on")
    parser.add_argument("--eval-text", action="append", default=[], help="text for perplexity; may be given again")
    parser.add_argument("--work", default="/tmp/parsimony-distill-benchmark", help="folder that keeps measurements")
    parser.add_argument("--out", help="Markdown file to write")
    parser.add_argument("--limit-s", type=float, help="end after this time; call again to go on")
    parser.add_argument("--drop-fraction", type=float, default=1 / 3)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--steps", type=int, default=8, help="speed: optimizer steps of one side of a pair")
    parser.add_argument("--checkpoint-steps", type=int, default=28, help="speed: steps of a run with checkpoints")
    parser.add_argument("--repeats", type=int, default=5, help="speed: pairs")
    parser.add_argument("--calibration-steps", type=int, default=8)
    parser.add_argument("--budget-s", type=float, default=1200, help="quality: seconds of the whole machine, per arm")
    parser.add_argument("--windows", type=int, default=100, help=f"quality: windows of {WINDOW} tokens for perplexity")
    parser.add_argument(
        "--task",
        nargs="*",
        default=["arc_easy", "piqa=400"],
        metavar="NAME[=N]",
        help="quality: tasks, and items of each",
    )
    arguments = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    os.environ.setdefault("HF_DATASETS_CACHE", str(Path(arguments.work) / "datasets"))
    if arguments.command == "arm":
        return arm(Path(arguments.given))
    work = Path(arguments.work)
    work.mkdir(parents=True, exist_ok=True)
    kept = Kept(work / f"{arguments.command}.json", arguments.limit_s)
    try:
        lines = {"speed": speed, "quality": quality}[arguments.command](arguments, kept, StageStore(work / "store"))
    except OutOfTimeError:
        print("the time is up; the same command goes on")
        return 75
    write_report(arguments, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())

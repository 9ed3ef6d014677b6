"""What does our harness add to a method? Our compress stage against a plain script, paired: wall time and peak memory.

    python -m benchmarks.compress --base FOLDER --method rtn-int4 --method gptq [--pairs 2] [--out FILE.md]

The plain script calls the library with the same settings and saves. Where the library can resume, the plain script
keeps the same checkpoints, and a third run without them says what resuming costs. Each runs in a process of its own,
in turn the one or the other first. Shown: the ratio of wall times (process start to end) for each pair, and of peak
host memory.
A larger base with random weights: `python -m benchmarks.gpu_compress base --shape llama3.2-1b --device cpu ...`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from core.environments import ROOT
from core.files import read_json, write_atomic, write_json
from core.store import StageStore
from pipeline.checkpoints.facts import count_parameters, facts_from_folder
from pipeline.checkpoints.manifest import Recipe
from pipeline.compress import registry, worker
from pipeline.compress.backends.gptqmodel import BLOCKS_BETWEEN_CHECKPOINTS
from pipeline.config import ModelConfig
from pipeline.plan.machine import find_machine
from pipeline.stages.base import local_checkpoint
from pipeline.stages.compress import finish
from pipeline.stages.graph import Effects
from pipeline.types import Artifact

GPTQ = "GPTQModifier({target}, ignore=['lm_head'], dampening_frac=0.01)"
ROUND = "QuantizationModifier({target}, ignore=['lm_head'])"
W4 = "config_groups=groups(4, {group_size}, True)"
PRESET = "targets='Linear', scheme='W8A8'"
PLAIN = {
    "rtn-int4": ROUND.format(target=W4),
    "rtn-int8": ROUND.format(target=PRESET),
    "gptq": GPTQ.format(target="config_groups=groups(4, {group_size}, True, 'memoryless_mse')"),
    "int8": f"SmoothQuantModifier(smoothing_strength=0.8), {GPTQ.format(target=PRESET)}",
    "int8-weight-only": GPTQ.format(target="config_groups=groups(8, None, True)"),
    "awq": f"AWQModifier(n_grid=20), {ROUND.format(target='config_groups=groups(4, {group_size}, False)')}",
}
"""The modifiers of a plain llm-compressor script."""
ONESHOT = """
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from transformers import AutoModelForCausalLM, AutoTokenizer

if not torch.cuda.is_available():  # llm-compressor's AWQ pins host memory, and fails where there is no accelerator
    IntermediatesCache._pin_intermediate = classmethod(lambda cls, intermediate: None)

def groups(bits, size, symmetric, observer=None):
    weights = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, observer=observer,
                               strategy="group" if size else "channel", group_size=size)
    return {{"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}}

dtype = "auto" if torch.cuda.is_available() else torch.float32
model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
tokenizer = AutoTokenizer.from_pretrained(base)
data = {{}}
if ids is not None:
    data = dict(dataset=Dataset.from_dict({{"input_ids": ids.tolist(), "attention_mask": np.ones_like(ids).tolist()}}),
                max_seq_length=ids.shape[1], num_calibration_samples=len(ids), shuffle_calibration_samples=False)
oneshot(model=model, processor=tokenizer, recipe=[{modifiers}], **data)
model.save_pretrained(output, save_compressed=True)
tokenizer.save_pretrained(output)
"""
GPTQMODEL = """
os.environ["GPTQMODEL_CPU_WORKERS"] = "2"
from gptqmodel import GPTQModel, QuantizeConfig
from gptqmodel.looper.checkpoint_store import CheckpointConfig
settings = QuantizeConfig(bits=4, group_size={group_size}, sym=True, desc_act=False, damp_percent=0.01, mse=2.4,
                          device="cuda" if torch.cuda.is_available() else "cpu")
model = GPTQModel.load(base, settings)
model.quantize([{{"input_ids": row, "attention_mask": torch.ones_like(row)}} for row in torch.from_numpy(ids)],
               batch_size=1, checkpoint={checkpoint})
model.save(output)
"""
SCRIPT = """
import json, os, resource, sys
import numpy as np, torch
base, tokens, output = sys.argv[1:4]
ids = None if tokens == "-" else np.load(tokens)
{work}
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
CHECKPOINT = "CheckpointConfig(path=output + '-checkpoint', resume='auto', interval='layer:{blocks}')"
METHODS = sorted({*PLAIN, "gptq-native"})


def plain_script(name: str, group_size: int | None, *, checkpoints: bool = True) -> str:
    """What a user would write who calls the library."""
    if name == "gptq-native":
        checkpoint = CHECKPOINT.format(blocks=BLOCKS_BETWEEN_CHECKPOINTS) if checkpoints else None
        return SCRIPT.format(work=GPTQMODEL.format(group_size=group_size, checkpoint=checkpoint))
    modifiers = PLAIN[name].replace("{group_size}", repr(group_size))
    return SCRIPT.format(work=ONESHOT.format(modifiers=modifiers))


def overhead(base: Artifact, methods: Sequence[str], pairs: int, samples: int, length: int) -> Iterator[str]:
    """The table of ratios, ours over the plain script's, line by line."""
    rng = np.random.default_rng(0)
    machine = find_machine()
    size = count_parameters(facts_from_folder("base", base.path))
    yield f"{pairs} pairs a method, {samples} x {length} tokens, {size:,} parameters;"
    yield f"{machine.device_name}, {machine.num_cpus} CPUs, {time.strftime('%Y-%m-%d')}"
    yield ""
    with tempfile.TemporaryDirectory() as scratch:  # the first process alone would read the libraries from the disk
        _run(["-c", "import llmcompressor, transformers"], Path(scratch), {})
    yield "| method | ours, s | plain, s | wall ratio (each pair) | peak host memory ratio |"
    yield "|---|---|---|---|---|"
    for name in methods:
        runs = [ours, plain, bare] if registry.method(name).resumable else [ours, plain]
        found: list[list[dict[str, float]]] = []
        for pair in range(pairs):
            with tempfile.TemporaryDirectory() as scratch:
                tokens = Path(scratch) / "tokens.npy"
                np.save(tokens, rng.integers(0, 40_000, size=(samples, length)))
                measured = {}
                for run in runs if pair % 2 == 0 else reversed(runs):
                    folder = Path(scratch) / run.__name__
                    folder.mkdir()
                    measured[run] = run(name, base, tokens, folder)
                found.append([measured[run] for run in runs])
        yield _row(name, [(one[0], one[1]) for one in found])
        if len(runs) > 2:
            yield _row(f"{name}, plain without checkpoints", [(one[0], one[2]) for one in found])


def _row(what: str, found: Sequence[tuple[dict[str, float], dict[str, float]]]) -> str:
    walls = [statistics.median(one["wall_s"] for one in side) for side in zip(*found, strict=True)]
    ratios = ", ".join(f"{one['wall_s'] / other['wall_s']:.3f}" for one, other in found)
    memory = statistics.median(one["peak_host_bytes"] / other["peak_host_bytes"] for one, other in found)
    return f"| {what} | {walls[0]:.1f} | {walls[1]:.1f} | {ratios} | {memory:.3f} |"


def ours(name: str, base: Artifact, tokens: Path, folder: Path) -> dict[str, float]:
    """Our compress stage: the worker's process, then digest, sizes, manifest and model card."""
    method = registry.method(name)
    args = vars(method.resolve(registry.method_args(name, {}), facts_from_folder("base", base.path)))
    job = {
        "method": name,
        "base": base.path,
        "output": folder / "model",
        "args": args,
        "calibration": tokens if method.needs_calibration else None,
        "seed": 0,
        "scratch": folder / "scratch" if method.resumable else None,
    }
    started = time.monotonic()
    write_json(folder / "job.json", job)
    command = ["-m", "core.jobs", worker.PROGRAM, str(folder / "job.json"), str(folder / "measured.json")]
    _run(command, folder, {"PYTHONPATH": str(ROOT)})
    finish(folder, Recipe(name, args, 0, {}), ModelConfig(name="benchmark"), base, None, stage_key="")
    wall_s = time.monotonic() - started
    return {"wall_s": wall_s, "peak_host_bytes": read_json(folder / "measured.json")["peak_host_bytes"]}


def bare(name: str, base: Artifact, tokens: Path, folder: Path) -> dict[str, float]:
    """A plain script that cannot be resumed."""
    return plain(name, base, tokens, folder, checkpoints=False)


def plain(name: str, base: Artifact, tokens: Path, folder: Path, *, checkpoints: bool = True) -> dict[str, float]:
    """A plain script with the same settings."""
    method = registry.method(name)
    args = vars(method.resolve(registry.method_args(name, {}), facts_from_folder("base", base.path)))
    script = folder / "plain.py"
    script.write_text(plain_script(name, args.get("group_size"), checkpoints=checkpoints))
    started = time.monotonic()
    source = str(tokens) if method.needs_calibration else "-"
    printed = _run([str(script), str(base.path), source, str(folder / "model")], folder, {})
    wall_s = time.monotonic() - started
    peak = next(line for line in printed.splitlines() if line.startswith("PEAK "))
    return {"wall_s": wall_s, "peak_host_bytes": float(peak.removeprefix("PEAK "))}


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **environment}
    with (folder / "log").open("w") as log:
        done = subprocess.run(
            [sys.executable, *command], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, check=False
        )
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} failed: {(folder / 'log').read_text()[-2000:]}")
    return done.stdout.decode()


def main() -> None:
    """Parse the command line and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--method", action="append", choices=METHODS, required=True)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = StageStore(Path(scratch))
        stage = local_checkpoint(arguments.base, store)
        base = Effects(store, Path(scratch), Path(sys.executable)).result(stage)
    lines = []
    for line in overhead(base, arguments.method, arguments.pairs, arguments.samples, arguments.length):
        print(line, flush=True)
        lines.append(line)
    if arguments.out is not None:
        write_atomic(arguments.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

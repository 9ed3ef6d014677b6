"""What do the methods lose, and what does our harness add? Quality of finished variants, and paired wall time.

    python -m benchmarks.compress quality --text TEST.txt VARIANT=FOLDER ... [--tokens 20000] [--out FILE.md]
    python -m benchmarks.compress overhead --base FOLDER --method rtn-int4 --method gptq [--pairs 2] [--out FILE.md]

`quality`: one pass of a text through the base (`none=FOLDER`) and all variants side by side, in windows of 512 tokens,
each scored from its first token (no overlap). Shown: perplexity with an interval, the ratio to the base's with a paired
interval (bootstrap over windows), mean KL(base || variant) in nats, and the share of tokens whose most likely
continuation stays the same. `--tokens 0` takes the whole text.

`overhead`: our compress stage against a plain script that calls the library with the same settings and saves, each in
a process of its own, in turn the one or the other first: the ratio of wall times and of peak host memory.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.files import write_atomic, write_json
from pipeline import registry
from pipeline.environments import ROOT, versions
from pipeline.facts import facts_from_folder
from pipeline.machine import find_machine

WINDOW = 512
DRAWS = 10_000


@dataclass
class Tally:
    """One variant's sums per window."""

    nll: list[float]
    kl: list[float]
    same: list[float]
    tokens: list[int]


def quality(text: Path, folders: dict[str, Path], num_tokens: int, out: Path | None) -> str:
    """The table of perplexity, KL and agreement."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    models = {
        name: AutoModelForCausalLM.from_pretrained(path, dtype=dtype, device_map=device).eval()
        for name, path in folders.items()
    }
    tokenizer = AutoTokenizer.from_pretrained(folders["none"])
    ids = tokenizer(text.read_text(), return_tensors="pt").input_ids[0]
    total = len(ids)
    ids = ids[: num_tokens or total]
    tallies = {name: Tally([], [], [], []) for name in folders}
    with torch.inference_mode():
        for start in range(0, len(ids) - 1, WINDOW):
            window = ids[start : start + WINDOW].unsqueeze(0).to(device)
            if window.shape[1] < 2:
                break
            logp: dict[str, Any] = {}
            for name, model in models.items():
                logp[name] = torch.log_softmax(model(window).logits[0, :-1].float(), dim=-1)
                _add(tallies[name], logp[name], logp["none"], window[0, 1:])
            sys.stderr.write(f"\r{start + WINDOW} of {len(ids)} tokens")
    lines = [
        f"{len(ids):,} of {total:,} tokens of {text.name}, windows of {WINDOW} without overlap; {_hardware()}",
        "",
        "| variant | perplexity [95%] | ratio to none [95%] | KL, nats | same top token |",
        "|---|---|---|---|---|",
    ]
    lines += [_row(name, tallies[name], tallies["none"]) for name in folders]
    table = "\n".join(lines) + "\n"
    if out is not None:
        write_atomic(out, table)
        raw = {name: vars(tally) for name, tally in tallies.items()}
        write_json(out.with_suffix(".json"), {"window": WINDOW, "tallies": raw, "versions": _versions()})
    return table


def _add(tally: Tally, ours: Any, base: Any, targets: Any) -> None:
    tally.nll.append(float(-ours.gather(1, targets.unsqueeze(1)).double().sum()))
    tally.kl.append(float((base.exp() * (base - ours)).double().sum()))
    tally.same.append(float((ours.argmax(-1) == base.argmax(-1)).sum()))
    tally.tokens.append(len(targets))


def _row(name: str, tally: Tally, base: Tally) -> str:
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(tally.tokens), size=(DRAWS, len(tally.tokens)))
    tokens, ours, theirs = (np.array(values, dtype=float) for values in (tally.tokens, tally.nll, base.nll))
    weights = tokens[picks].sum(1)
    own = np.exp(ours[picks].sum(1) / weights)
    ratio = np.exp((ours - theirs)[picks].sum(1) / weights)
    value = math.exp(ours.sum() / tokens.sum())
    against = math.exp((ours - theirs).sum() / tokens.sum())
    kl, same = sum(tally.kl) / tokens.sum(), sum(tally.same) / tokens.sum()
    ratio_text = "" if name == "none" else f"{against:.4f} {_interval(ratio, 4)}"
    return f"| {name} | {value:.2f} {_interval(own, 2)} | {ratio_text} | {kl:.4f} | {same:.1%} |"


def _interval(draws: NDArray[np.float64], digits: int) -> str:
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


PLAIN = {
    "rtn-int4": """
from llmcompressor.modifiers.quantization import QuantizationModifier
recipe = [QuantizationModifier(config_groups=groups(4, {group_size}, True), ignore=["lm_head"])]
""",
    "gptq": """
from llmcompressor.modifiers.gptq import GPTQModifier
recipe = [GPTQModifier(config_groups=groups(4, {group_size}, True), ignore=["lm_head"], dampening_frac=0.01)]
""",
    "int8": """
from llmcompressor.modifiers.quantization import GPTQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
recipe = [SmoothQuantModifier(smoothing_strength=0.8),
          GPTQModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"], dampening_frac=0.01)]
""",
}
SCRIPT = """
import resource, time
start = time.monotonic()
import json, sys
import numpy as np, torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from transformers import AutoModelForCausalLM, AutoTokenizer

def groups(bits, size, symmetric):
    weights = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, strategy="group", group_size=size)
    return {{"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}}
{recipe}
base, tokens, output = sys.argv[1:4]
dtype = "auto" if torch.cuda.is_available() else torch.float32
model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
tokenizer = AutoTokenizer.from_pretrained(base)
data = {{}}
if tokens != "-":
    ids = np.load(tokens)
    data = dict(dataset=Dataset.from_dict({{"input_ids": ids.tolist(), "attention_mask": np.ones_like(ids).tolist()}}),
                max_seq_length=ids.shape[1], num_calibration_samples=len(ids), shuffle_calibration_samples=False)
oneshot(model=model, processor=tokenizer, recipe=recipe, **data)
model.save_pretrained(output, save_compressed=True)
tokenizer.save_pretrained(output)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print("RESULT", json.dumps({{"wall_s": time.monotonic() - start, "peak_host_bytes": peak}}))
"""


def overhead(base: Path, methods: Sequence[str], pairs: int, samples: int, length: int, out: Path | None) -> str:
    """The table of ratios, ours over the plain script's."""
    rng = np.random.default_rng(0)
    lines = [
        f"{pairs} pairs a method, {samples} x {length} tokens; {_hardware()}",
        "",
        "| method | ours, s | plain, s | wall ratio (each pair) | peak host memory ratio |",
        "|---|---|---|---|---|",
    ]
    for name in methods:
        ratios, memory, walls = [], [], ([], [])  # type: ignore[var-annotated]
        for pair in range(pairs):
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                tokens = folder / "tokens.npy"
                np.save(tokens, rng.integers(0, 40_000, size=(samples, length)))
                order = (_ours, _plain) if pair % 2 == 0 else (_plain, _ours)
                found = {run.__name__: run(name, base, tokens, folder / run.__name__) for run in order}
            ours, plain = found["_ours"], found["_plain"]
            ratios.append(ours["wall_s"] / plain["wall_s"])
            memory.append(ours["peak_host_bytes"] / plain["peak_host_bytes"])
            walls[0].append(ours["wall_s"])
            walls[1].append(plain["wall_s"])
        shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        lines.append(
            f"| {name} | {statistics.median(walls[0]):.1f} | {statistics.median(walls[1]):.1f} | {shown} "
            f"| {statistics.median(memory):.3f} |"
        )
    table = "\n".join(lines) + "\n"
    if out is not None:
        write_atomic(out, table)
    return table


def _ours(name: str, base: Path, tokens: Path, folder: Path) -> dict[str, float]:
    method = registry.method(name)
    args = method.resolve(registry.method_args(name, {}), facts_from_folder("base", base))
    folder.mkdir()
    job = {
        "method": name,
        "base": base,
        "output": folder / "model",
        "args": vars(args),
        "calibration": tokens if method.needs_calibration else None,
        "seed": 0,
    }
    write_json(folder / "job.json", job)
    command = [sys.executable, "-m", "pipeline.compress.worker", folder / "job.json", folder / "measured.json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    started = time.monotonic()
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    wall_s = time.monotonic() - started
    measured = json.loads((folder / "measured.json").read_text())
    return {"wall_s": wall_s, "peak_host_bytes": measured["peak_host_bytes"]}


def _plain(name: str, base: Path, tokens: Path, folder: Path) -> dict[str, float]:
    method = registry.method(name)
    args = method.resolve(registry.method_args(name, {}), facts_from_folder("base", base))
    folder.mkdir()
    script = SCRIPT.format(recipe=PLAIN[name].format(**vars(args)))
    (folder / "plain.py").write_text(script)
    source = tokens if method.needs_calibration else "-"
    command = [sys.executable, folder / "plain.py", base, source, folder / "model"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    started = time.monotonic()
    done = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)
    wall_s = time.monotonic() - started
    line = next(one for one in done.stdout.splitlines() if one.startswith("RESULT "))
    return {"wall_s": wall_s, "peak_host_bytes": json.loads(line.removeprefix("RESULT "))["peak_host_bytes"]}


def _hardware() -> str:
    machine = find_machine()
    return f"{machine.device_name}, {machine.num_cpus} CPUs, {time.strftime('%Y-%m-%d')}"


def _versions() -> dict[str, Any]:
    return versions(Path(sys.executable), "llmcompressor", "compressed-tensors", "gptqmodel", "transformers", "torch")


def main() -> None:
    """Parse the command line and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("quality")
    one.add_argument("--text", type=Path, required=True)
    one.add_argument("--tokens", type=int, default=20_000)
    one.add_argument("--out", type=Path)
    one.add_argument("variants", nargs="+", metavar="VARIANT=FOLDER")
    two = commands.add_parser("overhead")
    two.add_argument("--base", type=Path, required=True)
    two.add_argument("--method", action="append", choices=sorted(PLAIN), required=True)
    two.add_argument("--pairs", type=int, default=2)
    two.add_argument("--samples", type=int, default=8)
    two.add_argument("--length", type=int, default=512)
    two.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "quality":
        folders = {name: Path(path) for name, _, path in (item.partition("=") for item in arguments.variants)}
        if next(iter(folders)) != "none":
            parser.error("the first variant must be none=FOLDER, the base")
        table = quality(arguments.text, folders, arguments.tokens, arguments.out)
    else:
        size = (arguments.pairs, arguments.samples, arguments.length)
        table = overhead(arguments.base, arguments.method, *size, arguments.out)
    sys.stdout.write("\n" + table)


if __name__ == "__main__":
    main()

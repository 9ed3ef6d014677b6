r"""Every CUDA method on a real shape with random weights: does it run, how long, how much memory, does vLLM serve it?

On an offline GPU host, with this repository, vLLM, llm-compressor (and GPTQModel, bitsandbytes where they are at hand)
importable (PYTHONPATH) and a small tokenizer at hand:

    python -m benchmarks.gpu_compress base --work /tmp/work --tokenizer TOKENIZER            # the Llama-3-8B shape
    python -m benchmarks.gpu_compress method --work /tmp/work --method gptq --out OUT        # once per method
    python -m benchmarks.gpu_compress table --out OUT

`method` compresses through the product's own worker (block by block), then loads the folder in vLLM, generates, and
names the kernel that vLLM chose. A method whose library is missing, or that fails, is recorded with its last lines.
The weights are random: time, memory and kernels are real, quality means nothing. llm-compressor publishes 745 s for
GPTQ on Llama-3-8B. `--shape tiny --device cpu` tries the whole path on any machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_load import SHAPES
from core.environments import ROOT
from core.files import read_json, write_atomic, write_json
from evals.load.counters import server_facts
from pipeline.checkpoints.facts import facts_from_folder
from pipeline.compress import registry, worker
from pipeline.serve.engine import PLUGIN

METHODS = sorted(set(registry.COMPRESS) - {"none", "external"})
GIB = 2**30
GENERATE = """
import sys, time
if __name__ == "__main__":
    from vllm import LLM, SamplingParams
    llm = LLM(sys.argv[1], dtype=sys.argv[2], max_model_len=1024, enforce_eager=True, gpu_memory_utilization=0.85)
    prompts = [{"prompt_token_ids": [7 + i] * 64} for i in range(16)]
    started = time.monotonic()
    found = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True))
    tokens = sum(len(one.outputs[0].token_ids) for one in found)
    print("GENERATED", tokens, time.monotonic() - started)
"""
COLUMNS = ("method", "wall s", "peak GPU GiB", "peak host GiB", "size GiB", "vLLM", "kernels")


def base(options: argparse.Namespace) -> None:
    """Write the random base checkpoint and calibration token ids."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = options.work / "base"
    if (folder / "config.json").exists():
        print("the base is already there")
        return
    torch.manual_seed(options.seed)
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    with torch.device(options.device):
        model = LlamaForCausalLM(LlamaConfig(**SHAPES[options.shape], dtype=dtype)).to(dtype)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(options.tokenizer).save_pretrained(folder)
    rng = np.random.default_rng(options.seed)
    vocab = min(SHAPES[options.shape]["vocab_size"], 40_000)
    np.save(options.work / "tokens.npy", rng.integers(0, vocab, size=(options.samples, options.length)))


def compress(options: argparse.Namespace) -> None:
    """Run one method, then serve what it made; the record goes to OUT/<method>.json."""
    record: dict[str, Any] = {"method": options.method, "date": time.strftime("%Y-%m-%d"), "device": device_name()}
    method = registry.method(options.method)
    folder = options.work / options.method
    folder.mkdir(parents=True, exist_ok=True)
    facts = facts_from_folder("base", options.work / "base")
    job = {
        "method": options.method,
        "base": options.work / "base",
        "output": folder / "model",
        "args": vars(method.resolve(registry.method_args(options.method, {}), facts)),
        "calibration": options.work / "tokens.npy" if method.needs_calibration else None,
        "seed": options.seed,
        "scratch": folder / "scratch" if method.resumable else None,
    }
    write_json(folder / "job.json", job)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
    paths = [str(ROOT), *(os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    log = folder / "compress.log"
    command = ["-m", "core.jobs", worker.PROGRAM, str(folder / "job.json"), str(folder / "measured.json")]
    record["made"] = run([sys.executable, *command], log, environment)
    if record["made"]["exit_code"] == 0:
        record["measured"] = read_json(folder / "measured.json")
        record["bytes"] = sum(path.stat().st_size for path in (folder / "model").glob("*.safetensors"))
        record |= serve(folder, environment, options)
    write_json(options.out / f"{options.method}.json", record)
    print(f"{options.method}: {record['made']['exit_code']}, {record['made']['wall_s']:.0f} s", flush=True)


def serve(folder: Path, environment: dict[str, str], options: argparse.Namespace) -> dict[str, Any]:
    """Load the checkpoint in vLLM and generate."""
    log = folder / "vllm.log"
    dtype = "bfloat16" if options.device == "cuda" else "float32"
    if options.device == "cpu":
        environment = {**environment, "PYTHONPATH": str(PLUGIN), "VLLM_CPU_KVCACHE_SPACE": "1"}
    (folder / "generate.py").write_text(GENERATE)
    served = run([options.python, str(folder / "generate.py"), str(folder / "model"), dtype], log, environment)
    text = log.read_text(errors="replace")
    line = next((one for one in text.splitlines() if one.startswith("GENERATED ")), None)
    return {"served": served, "generated": line, "server": server_facts(text)}


def run(command: list[str], log: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run a command with its output in a file."""
    started = time.monotonic()
    with log.open("wb") as output:
        code = subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=log.parent, check=False
        ).returncode
    last = log.read_text(errors="replace").splitlines()[-12:]
    return {"exit_code": code, "wall_s": time.monotonic() - started, "last_lines": last if code else []}


def device_name() -> str:
    """The GPU's name, or that there is none."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"


def table(options: argparse.Namespace) -> None:
    """Write OUT/table.md from the records alone."""
    records = [read_json(path) for path in sorted(options.out.glob("*.json"))]
    if not records:
        raise SystemExit(f"no record in {options.out}: run `method` first")
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    for record in records:
        measured = record.get("measured")
        if measured is None:
            reason = next((line for line in reversed(record["made"]["last_lines"]) if line.strip()), "no output")
            lines.append(f"| {record['method']} | failed: {reason[:160]} |" + " |" * (len(COLUMNS) - 2))
            continue
        device = measured["peak_device_bytes"]
        cells = [
            record["method"],
            f"{measured['wall_s']:.0f}",
            "unavailable" if device is None else f"{device / GIB:.2f}",
            f"{measured['peak_host_bytes'] / GIB:.2f}",
            f"{record['bytes'] / GIB:.2f}",
            record["generated"] or f"failed ({record['served']['exit_code']})",
            ", ".join(record["server"]["kernels"]) or "none named",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"{records[0]['device']}, {records[0]['date']}"]
    write_atomic(options.out / "table.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first, second, third = (commands.add_parser(name) for name in ("base", "method", "table"))
    for command in (first, second):
        command.add_argument("--work", type=Path, required=True)
        command.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
        command.add_argument("--seed", type=int, default=0)
    first.add_argument("--shape", choices=sorted(SHAPES), default="llama3-8b")
    first.add_argument("--tokenizer", type=Path, required=True)
    first.add_argument("--samples", type=int, default=128)
    first.add_argument("--length", type=int, default=2048)
    second.add_argument("--method", choices=METHODS, required=True)
    second.add_argument("--python", default=sys.executable, help="interpreter that has vLLM")
    for command in (second, third):
        command.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    {"base": base, "method": compress, "table": table}[options.command](options)


if __name__ == "__main__":
    main()

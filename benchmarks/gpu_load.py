r"""Speed, memory and energy of a real shape with random weights, per quantization and load, on an offline GPU host.

On such a host, with this repository, vLLM and llm-compressor importable (PYTHONPATH) and a small tokenizer at hand:

    python -m benchmarks.gpu_load make --models /tmp/models --tokenizer TOKENIZER --schemes bf16 fp8 int8 int4
    python -m benchmarks.gpu_load measure --models /tmp/models --scheme bf16 --out OUT       # once per scheme
    python -m benchmarks.gpu_load measure --models /tmp/models --scheme bf16 --out OUT --label bf16-ngram \\
        --scenario conf/load/latency.yaml --server-arg=--speculative-config \\
        --server-arg='{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4}'
    python -m benchmarks.gpu_load table --out OUT [--hardware h100-80gb] [--usd-per-hour 6.98]

The weights are random, not zeros, and quantized by rounding to nearest (llm-compressor's data-free schemes): shape,
kernels, memory and speed are real, quality means nothing. `measure` goes on where it was cut off, so a limit of ten
minutes a command does no harm. `table` needs no GPU; it writes OUT/table.md from the records alone.
`--shape tiny --device cpu` tries the whole path on any machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

from core.files import digest_json, read_json, write_atomic, write_json
from core.process import ChildProcess
from evals.cost.curves import compare, cost_curve, energy_per_token_j
from evals.json_form import from_json
from evals.load.counters import server_facts
from evals.load.monitor import Monitor
from evals.load.run import run_load
from evals.load.scenario import LoadScenario, PointSpec, from_config
from evals.load.summary import figure
from evals.types import LoadConditions, LoadReport, Target
from finops.pricing.prices import lookup
from pipeline.serve.server import free_port, wait_until_ready

SHAPES: dict[str, dict[str, Any]] = {
    "llama3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
    },
    "llama3.2-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 49152,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    },
}
SCHEMES = {"bf16": None, "fp8": "FP8_DYNAMIC", "int8": "W8A8", "int4": "W4A16"}
"""Our name of a scheme -> llm-compressor's preset; all of them work without calibration data."""
CONCURRENCIES = (1, 8, 32, 128, 256)
MIX = (512, 256)
"""Input and output tokens of the published measurements that the table is compared with."""
COLUMNS = (
    "variant",
    "load",
    "output tok/s",
    "TTFT p50 ms",
    "TPOT p50 ms",
    "GPU memory GiB",
    "J/token",
    "USD/1M output",
    "cost to bf16",
)


def make(options: argparse.Namespace) -> None:
    """Write one checkpoint per scheme, and what making it took."""
    for scheme in options.schemes:
        folder = options.models / scheme
        if (folder / "made.json").exists():
            print(f"{scheme}: already there")
            continue
        started = time.monotonic()
        shutil.rmtree(folder, ignore_errors=True)
        peak_bytes = make_scheme(scheme, folder, options)
        write_json(
            folder / "made.json",
            {
                "scheme": scheme,
                "shape": options.shape,
                "seed": options.seed,
                "wall_s": time.monotonic() - started,
                "peak_device_bytes": peak_bytes,
                "bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
            },
        )
        print(f"{scheme}: made in {time.monotonic() - started:.0f} s", flush=True)


def make_scheme(scheme: str, folder: Path, options: argparse.Namespace) -> int | None:
    """Random weights from the seed, quantized; returns the peak of the device's memory, None on a CPU."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(options.seed)
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    config = LlamaConfig(**SHAPES[options.shape], dtype=dtype)
    with torch.device(options.device):
        model = LlamaForCausalLM(config).to(dtype)
    preset = SCHEMES[scheme]
    if preset is not None:
        from llmcompressor import oneshot
        from llmcompressor.modifiers.quantization import QuantizationModifier

        oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme=preset, ignore=["lm_head"]))
    model.save_pretrained(folder, **({} if preset is None else {"save_compressed": True}))
    AutoTokenizer.from_pretrained(options.tokenizer).save_pretrained(folder)
    return torch.cuda.max_memory_allocated() if options.device == "cuda" else None


def scenario_of(options: argparse.Namespace) -> LoadScenario:
    """The given scenario file, or the published mix at rising concurrency."""
    if options.scenario is not None:
        import yaml

        return from_config(yaml.safe_load(options.scenario.read_text()))
    input_tokens, output_tokens = options.mix
    points = tuple(
        PointSpec(input_tokens, output_tokens, num_requests=max(4, 2 * level), concurrency=level)
        for level in options.concurrency
    )
    return LoadScenario("gpu", points, num_repeats=options.repeats, mix=tuple(options.mix))


def measure(options: argparse.Namespace) -> None:
    """Serve one checkpoint and measure the scenario; the record goes to OUT/<label>.json."""
    label = options.label or options.scheme
    folder, work = options.models / options.scheme, options.out / "work" / label
    url = f"http://127.0.0.1:{free_port()}"
    command = [options.python, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--host", "127.0.0.1"]
    command += ["--port", url.rsplit(":", 1)[1], "--served-model-name", "model", *engine_arguments(options)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    environment.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    log = work / "vllm.log"
    made = read_json(folder / "made.json")
    engine = [str(argument) for argument in engine_arguments(options)]
    with ChildProcess([str(part) for part in command], log=log, env=environment) as server:
        started = time.monotonic()
        wait_until_ready(server, url, options.startup_timeout_s)
        startup_s = time.monotonic() - started
        target = Target(url, "model", folder, {"arguments": engine}, digest_json({"made": made, "engine": engine}))
        print(f"{label}: server up after {startup_s:.0f} s", flush=True)
        report = run_load(
            target,
            scenario_of(options),
            Path(options.python),
            work,
            options.seed,
            env=environment,
            machine=LoadConditions(startup_s=startup_s),
            on_run=lambda done, known: print(f"  {done}/{known}", flush=True),
        )
    facts = {
        "made": made,
        "platform": platform.platform(),
        "server": server_facts(log.read_text(errors="replace")),
        "gpu": gpu_names(),
    }
    write_json(options.out / f"{label}.json", {**facts, "date": time.strftime("%Y-%m-%d"), "report": report})
    print(f"{label}: done", flush=True)


def engine_arguments(options: argparse.Namespace) -> list[str]:
    """The server's engine settings; prefix caching is off unless asked for, prompts share nothing."""
    arguments = ["--max-model-len", str(options.max_model_len), "--max-num-seqs", str(options.max_num_seqs)]
    if options.device == "cuda":
        arguments += ["--dtype", "bfloat16", "--gpu-memory-utilization", "0.9"]
    else:
        arguments += ["--dtype", "float32", "--enforce-eager"]
    return [*arguments, *options.server_arg]


def gpu_names() -> list[str]:
    """The GPUs that NVML names; empty where there is none."""
    return Monitor(None).gpu_names()


def table(options: argparse.Namespace) -> None:
    """Write OUT/table.md from the records in OUT: figures per load, ratios to bf16, and prices."""
    records = {path.stem: read_json(path) for path in sorted(options.out.glob("*.json"))}
    reports = {label: from_json(LoadReport, record["report"]) for label, record in records.items()}
    if not reports:
        raise SystemExit(f"no record in {options.out}: run `measure` first")
    price = lookup(options.hardware, usd_per_hour=options.usd_per_hour)
    lines = [
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
    ]
    for label, report in reports.items():
        prices = {item.name: item.usd_per_1m_output_tokens for item in cost_curve(report, price)}
        against = {item.name: item for item in compare(reports["bf16"], report)} if "bf16" in reports else {}
        for point in report.points:
            memory = [value for counters in point.counters if (value := counters.get("gpu_memory_used_peak_bytes"))]
            joules, usd, ratio = energy_per_token_j(point), prices.get(point.name), against.get(point.name)
            cells = [
                label,
                point.name,
                shown(figure(point, "output_tok_per_s")),
                shown(figure(point, "ttft_p50_s"), 1000),
                shown(figure(point, "tpot_p50_s"), 1000),
                f"{max(memory) / 2**30:.1f}" if memory else "unavailable",
                shown(joules) if joules else "unavailable",
                f"{usd.value:.3f} [{usd.lo:.3f}, {usd.hi:.3f}]" if usd else "",
                f"{ratio.ratio:.2f} {ratio.verdict}" if ratio and label != "bf16" else "",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    range_usd = f"{price.usd_per_hour_lo}-{price.usd_per_hour_hi} USD/h"
    lines += ["", f"Price: {range_usd}, {price.source}, as of {price.as_of or 'the user'}.", ""]
    for label, record in records.items():
        kernels = ", ".join(record["server"]["kernels"]) or "none named"
        version, gpu = record["server"]["vllm_version"], ", ".join(record["gpu"]) or "no GPU"
        lines.append(f"- {label}: vLLM {version} on {gpu}; kernels: {kernels}")
    write_atomic(options.out / "table.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


def shown(value: Any, factor: float = 1.0) -> str:
    """A figure with its interval, or that it is missing."""
    if value is None:
        return "not measured"
    text = f"{value.value * factor:.4g}"
    return text if value.lo is None else f"{text} [{value.lo * factor:.4g}, {value.hi * factor:.4g}]"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making, measuring, tabling = (commands.add_parser(name) for name in ("make", "measure", "table"))
    for command in (making, measuring):
        command.add_argument("--models", type=Path, required=True)
        command.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
        command.add_argument("--seed", type=int, default=0)
    making.add_argument("--shape", choices=sorted(SHAPES), default="llama3-8b")
    making.add_argument("--tokenizer", type=Path, required=True)
    making.add_argument("--schemes", nargs="+", choices=sorted(SCHEMES), default=list(SCHEMES))
    measuring.add_argument("--scheme", choices=sorted(SCHEMES), required=True)
    measuring.add_argument("--label")
    measuring.add_argument("--python", default=sys.executable)
    measuring.add_argument("--scenario", type=Path)
    measuring.add_argument("--concurrency", nargs="+", type=int, default=list(CONCURRENCIES))
    measuring.add_argument("--mix", nargs=2, type=int, default=list(MIX))
    measuring.add_argument("--repeats", type=int, default=3)
    measuring.add_argument("--max-model-len", type=int, default=2048)
    measuring.add_argument("--max-num-seqs", type=int, default=256)
    measuring.add_argument("--server-arg", action="append", default=[])
    measuring.add_argument("--startup-timeout-s", type=float, default=400.0)
    tabling.add_argument("--hardware", default="h100-80gb")
    tabling.add_argument("--usd-per-hour", type=Decimal)
    for command in (measuring, tabling):
        command.add_argument("--out", type=Path, required=True)
    return parser.parse_args(arguments)


def main() -> None:
    """Run one command."""
    options = parse()
    {"make": make, "measure": measure, "table": table}[options.command](options)


if __name__ == "__main__":
    main()

"""Do our load figures equal those of a plain `vllm bench serve`? Paired runs against one server, and our own overhead.

    python -m benchmarks.load --model FOLDER [--pairs 8] [--loads c8] [--out benchmarks/results/load.json]
    python -m benchmarks.load --model FOLDER --loads c1,c8,c32,rps0.8        points of a curve, against one server
    python -m benchmarks.load --model FOLDER --url http://127.0.0.1:8000 --served-model-name NAME   # a server of yours

Every pair measures the same setting twice, through the product's load stage and through vLLM's own command in a process
of its own, in turn the one or the other first, each with prompts that the server has not seen. What is shown is the
mean ratio ours / plain with its 95% interval, beside the plain client's own run-to-run spread: ours agrees when the
interval holds 1. Loads are named as the product's points are: `c8` is 8 requests in flight, `rps0.8` 0.8 Poisson
arrivals per second. Overhead is the time between the end of one repeat and the start of the next, as a share of the
repeats, at the first load.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.environments import serving_python, versions
from core.files import digest_file, write_json
from core.process import run_logged
from evals.load.arguments import bench_arguments, raw_names, run_seed
from evals.load.run import run_load
from evals.load.scenario import LoadScenario, PointSpec, SloSearch, Sweep
from evals.load.search import rate_point, sweep_point
from evals.load.summary import over_repeats, summarise
from evals.types import Target
from pipeline.config import EngineConfig
from pipeline.plan.machine import find_machine
from pipeline.serve.engine import server_environment
from pipeline.serve.server import ServedModel
from pipeline.types import Artifact

PLAIN = (
    "import sys; from vllm.benchmarks.serve import add_cli_args, main; "
    "from vllm.utils.argparse_utils import FlexibleArgumentParser as Parser; "
    "parser = Parser(); add_cli_args(parser); main(parser.parse_args(sys.argv[1:]))"
)
"""What `vllm bench serve` does; the command itself does not start in the CPU build, whose package has another name."""
METRICS = ("output_tok_per_s", "req_per_s", "ttft_p50_s", "tpot_p50_s")
Metrics = dict[str, float | None]


@dataclass(frozen=True)
class Bench:
    """What every run of the benchmark shares."""

    target: Target
    point: PointSpec
    folder: Path
    env: dict[str, str]

    def plain(self, seed: int) -> Metrics:
        """One run of vLLM's own client in a process of its own; a discarded round first, as ours has."""
        parallel = self.point.concurrency
        warmup = PointSpec(self.point.input_tokens, 16, parallel or 8, concurrency=parallel)
        saved = ["--save-result", "--save-detailed", "--result-dir", str(self.folder), "--result-filename"]
        for spec, prompts_seed, extra in ((warmup, seed + 1, []), (self.point, seed, [*saved, f"{seed}.json"])):
            arguments = bench_arguments(self.target, spec, prompts_seed)
            run_logged([serving_python(), "-c", PLAIN, *arguments, *extra], log=self.folder / "plain.log", env=self.env)
        return summarise(json.loads((self.folder / f"{seed}.json").read_text()))

    def ours(self, seed: int) -> Metrics:
        """One run through the load stage."""
        scenario, folder = LoadScenario("paired", (self.point,), num_repeats=1), self.folder / f"ours-{seed}"
        report = run_load(self.target, scenario, serving_python(), folder, seed, env=self.env)
        return report.points[0].repeats[0]

    def pairs(self, num_pairs: int, seed: int) -> list[dict[str, Metrics]]:
        """Both ways, one after the other, in turn the one or the other first."""
        found = []
        for index in range(num_pairs):
            ways = [("ours", self.ours), ("plain", self.plain)]
            pair = {}
            for turn, (name, way) in enumerate(ways if index % 2 == 0 else reversed(ways)):
                pair[name] = way(run_seed(seed, self.point, 2 * index + turn))
            found.append(pair)
            shown = ", ".join(f"{name} {figures['output_tok_per_s']:.1f}" for name, figures in pair.items())
            print(f"{self.point.name}, pair {index + 1}/{num_pairs}: {shown} output tok/s", flush=True)
        return found

    def overhead(self, seed: int) -> dict[str, float]:
        """Time between repeats over time in them, for five repeats."""
        scenario, folder = LoadScenario("overhead", (self.point,), num_repeats=5), self.folder / "overhead"
        run_load(self.target, scenario, serving_python(), folder, seed, env=self.env)
        names = raw_names(self.target, scenario, self.point, seed)
        runs = [json.loads((folder / "raw" / name).read_text()) for name in names]
        gaps = [b["started_monotonic_s"] - a["ended_monotonic_s"] for a, b in itertools.pairwise(runs)]
        inside_s = sum(run["ended_monotonic_s"] - run["started_monotonic_s"] for run in runs[1:])
        return {"between_s": sum(gaps), "inside_s": inside_s, "share": sum(gaps) / inside_s}


@contextlib.contextmanager
def target_of(options: argparse.Namespace, folder: Path) -> Iterator[Target]:
    """The user's server, or one that is started for the benchmark."""
    if options.url is not None:
        yield Target(options.url, options.served_model_name, options.model, {}, f"url {options.url}")
        return
    machine = find_machine()
    weights = sorted(options.model.glob("*.safetensors"))
    num_bytes = sum(path.stat().st_size for path in weights)
    artifact = Artifact(options.model, digest_file(weights[0]), num_bytes, "given", None)
    engine = EngineConfig(dtype="bfloat16" if machine.has_bf16 else "float32")
    with ServedModel(artifact, engine, machine, serving_python(), folder / "vllm.log") as served:
        yield served.target()


def point_of(name: str, options: argparse.Namespace) -> PointSpec:
    """A load by its name: `c8` or `rps0.8`, as many requests of it as the product's sweep and search would send."""
    sizes = options.input_tokens, options.output_tokens
    if name.startswith("rps"):
        return rate_point(SloSearch(*sizes), float(name.removeprefix("rps")))
    return sweep_point(Sweep(*sizes), int(name.removeprefix("c")))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All pairs and the overhead, as one record."""
    machine = find_machine()
    env = {**server_environment(EngineConfig(), machine), "PYTHONHASHSEED": "0"}
    loads: dict[str, dict[str, Any]] = {}
    with target_of(options, folder) as target:
        benches = [Bench(target, point_of(name, options), folder, env) for name in options.loads.split(",")]
        for bench in benches:
            pairs = bench.pairs(options.pairs, options.seed)
            ratios = {name: ratio(pairs, name) for name in METRICS}
            loads[bench.point.name] = {"point": dataclasses.asdict(bench.point), "ratios": ratios, "pairs": pairs}
        spent = benches[0].overhead(options.seed + 1)
    return {
        "what": "load stage against plain vllm bench serve",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": {**machine.fingerprint, "platform": platform.platform(), "load_average": os.getloadavg()},
        "versions": versions(serving_python(), "vllm", "torch"),
        "model": options.name,
        "loads": loads,
        "overhead": spent,
    }


def ratio(pairs: list[dict[str, Metrics]], metric: str) -> dict[str, Any]:
    """Mean ratio ours / plain with its interval over the pairs, and the plain client's own relative spread."""
    both = [(ours, plain) for pair in pairs if (ours := pair["ours"][metric]) and (plain := pair["plain"][metric])]
    mean = over_repeats([ours / plain for ours, plain in both])
    if mean is None or mean.lo is None or mean.hi is None:
        raise SystemExit(f"{metric}: fewer than two pairs were measured")
    logs = [math.log(plain) for _, plain in both]
    centre = sum(logs) / len(logs)
    spread = math.sqrt(sum((value - centre) ** 2 for value in logs) / (len(logs) - 1))
    return {
        "ratio": mean.value,
        "lo": mean.lo,
        "hi": mean.hi,
        "plain_spread": spread,
        "agrees": mean.lo <= 1 <= mean.hi,
    }


def main() -> None:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the model, or of the tokenizer with --url")
    parser.add_argument("--url", help="a running server, instead of one that is started here")
    parser.add_argument("--served-model-name", default="model")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--loads", default="c8", help="points, as c8 (requests in flight) or rps0.8 (arrivals/s)")
    parser.add_argument("--name", default="", help="what the record calls the model")
    parser.add_argument("--input-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="load-benchmark-") as folder:
        record = measure(options, Path(folder))
    for load, figures in record["loads"].items():
        for name, row in figures["ratios"].items():
            interval = f"[{row['lo']:.4f}, {row['hi']:.4f}]"
            print(f"{load:<14} {name:<18} ours/plain {row['ratio']:.4f} {interval}, spread {row['plain_spread']:.1%}")
    print(f"overhead between repeats: {record['overhead']['share']:.2%} of the time in them")
    if options.out is not None:
        write_json(options.out, record)


if __name__ == "__main__":
    main()

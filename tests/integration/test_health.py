"""Healthy and damaged checkpoints of the real 135M model, made by llm-compressor, through the proof of health."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from core.errors import ToolError
from core.files import plain, read_json, write_json
from core.store import StageStore
from pipeline.checkpoints.structure import LAYER, SCALES, files_of_layers, read_shards
from pipeline.config import CalibConfig
from pipeline.health import worker as health_worker
from pipeline.health.health import run_health
from pipeline.health.report import HealthError, HealthLimits, HealthReport, judge, report_from, require_healthy
from tests.integration.conftest import ROOT, Workplace, embedded_base
from tests.unit.pipeline.data_tools import calibration_tokens

pytestmark = [pytest.mark.integration, pytest.mark.slow]
MAKE = """
import sys
from pathlib import Path
from llmcompressor.modifiers.quantization import QuantizationModifier
from pipeline.compress.backends.llmcompressor import one_shot
from pipeline.compress.registry import CompressJob
weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64}
groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
schemes = {"int4": {"config_groups": groups}, "int8": {"scheme": "W8A8"}}
for name, scheme in schemes.items():
    recipe = lambda: [QuantizationModifier(targets=["Linear"], ignore=["lm_head"], **scheme)]
    one_shot(CompressJob(Path(sys.argv[1]), Path(sys.argv[2]) / name, {}, None, 0), recipe)
"""


@dataclass(frozen=True)
class Bench:
    """A base, the checkpoints made from it, real tokens, and where the base's outputs are kept."""

    base: Path
    made: Path
    tokens: Path
    cache: Path

    def damaged(self, to: Path, damage: Callable[[Path], None], name: str = "int4") -> Path:
        """A copy of a healthy checkpoint with something done to its one weight file."""
        shutil.copytree(self.made / name, to)
        damage(to / "model.safetensors")
        return to

    def report(self, candidate: Path, out: Path) -> HealthReport:
        return run_health(self.base, candidate, self.tokens, out, self.cache)

    def measured(self, candidate: Path) -> HealthReport:
        """The figures, also where the files alone would have stopped it; in this process, to load torch once."""
        job = {
            "base": self.base,
            "candidate": candidate,
            "tokens": self.tokens,
            "base_cache": self.cache,
            "num_sequences": 2,
            "length": 192,
            "suspect_above": HealthLimits().max_local_error,
        }
        raw = plain(health_worker.measured(job))
        return report_from({**raw, "layer_files": files_of_layers(candidate)})


@pytest.fixture(scope="module")
def bench(workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    store = StageStore(workplace.home / "store")
    base = embedded_base(store)
    calib = CalibConfig(sources=["squad", "drop"], num_samples=2, length=192, seed=7)
    tokens = calibration_tokens(calib, base, store).folder / "tokens.npy"
    folder = tmp_path_factory.mktemp("health")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-c", MAKE, base.path, folder], check=True, cwd=folder, env=environment, capture_output=True
    )
    return Bench(base.path, folder, tokens, folder / "base.npz")


def edit(file: Path, change: Callable[[str, np.ndarray], None]) -> None:
    """Give `change` every tensor's name and its bytes, to change in place."""
    found, problems = read_shards(file.parent)
    assert not problems
    (shard,) = found
    content = np.memmap(file, np.uint8, "r+")
    for name, entry in shard.tensors.items():
        begin, end = (shard.data_start + offset for offset in entry["data_offsets"])
        change(name, content[begin:end])
    content.flush()


def swap(first: int, second: int) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        held: dict[str, np.ndarray] = {}

        def keep(name: str, raw: np.ndarray) -> None:
            held[name] = raw.copy()

        def put(name: str, raw: np.ndarray) -> None:
            if (match := LAYER.match(name)) and int(match["index"]) in (first, second):
                other = second if int(match["index"]) == first else first
                raw[:] = held[f"{match['stack']}.{other}.{match['rest']}"]

        edit(file, keep)
        edit(file, put)

    return damage


def zero_scales(layer: str) -> Callable[[Path], None]:
    def zero(name: str, raw: np.ndarray) -> None:
        if name.startswith(f"{layer}.") and SCALES.search(name):
            raw[:] = 0

    return lambda file: edit(file, zero)


def poison(tensor: str) -> Callable[[Path], None]:
    def put(name: str, raw: np.ndarray) -> None:
        if name == tensor:
            raw[:4] = np.frombuffer(np.float32(np.nan).tobytes(), np.uint8)

    return lambda file: edit(file, put)


HALF = HealthLimits(
    max_mean_kl_nats=HealthLimits.max_mean_kl_nats / 1.5,
    min_top1_agreement=HealthLimits.min_top1_agreement * 1.25,
    max_perplexity_ratio=1 + (HealthLimits.max_perplexity_ratio - 1) / 1.5,
    max_local_error=HealthLimits.max_local_error / 1.5,
    max_ends_error=HealthLimits.max_ends_error / 1.5,
)
"""Healthy checkpoints keep well away from the limits."""


def test_a_healthy_int4_checkpoint_passes_with_room(bench: Bench, tmp_path: Path) -> None:
    report = bench.report(bench.made / "int4", tmp_path)
    assert judge(report, HALF) == []
    assert report.num_tokens == 384
    assert len(report.layers) == 30
    assert report.mean_kl_nats is not None
    assert report.mean_kl_nats > 0
    assert read_json(tmp_path / "health.json")["mean_kl_nats"] == report.mean_kl_nats
    assert bench.cache.exists()
    assert list(bench.cache.parent.glob(".*.tmp")) == []


def test_a_healthy_int8_checkpoint_passes_and_reuses_the_base(bench: Bench, tmp_path: Path) -> None:
    bench.measured(bench.base)
    report = bench.measured(bench.made / "int8")
    assert report.base_reused
    assert judge(report, HALF) == []


def test_the_base_against_itself_differs_in_nothing(bench: Bench) -> None:
    report = bench.measured(bench.base)
    assert judge(report, HealthLimits()) == []
    assert report.mean_kl_nats == pytest.approx(0, abs=1e-9)
    assert report.top1_agreement == 1
    assert report.perplexity_ratio == pytest.approx(1)
    assert max(layer.relative_error or 0 for layer in report.layers) < 1e-4
    assert report.embedding_error == 0
    assert report.head_error == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(("first", "second"), [(10, 11), (3, 25)])
def test_swapped_layers_are_named_with_each_other(bench: Bench, tmp_path: Path, first: int, second: int) -> None:
    candidate = bench.damaged(tmp_path / "model", swap(first, second))
    report = bench.report(candidate, tmp_path)
    with pytest.raises(HealthError) as caught:
        require_healthy(report, folder=candidate)
    message = str(caught.value)
    for one, other in ((first, second), (second, first)):
        (finding,) = [item for item in caught.value.findings if item.where.startswith(f"model.layers.{one} in")]
        assert f"the base's model.layers.{other} does" in finding.message
        assert finding.where.endswith("model.safetensors")
    assert sum("model.layers." in item.where for item in caught.value.findings) == 2
    assert "-> remove the damaged folder" in message


def test_a_layers_zeroed_scales_stop_before_and_after_loading(bench: Bench, tmp_path: Path) -> None:
    candidate = bench.damaged(tmp_path / "model", zero_scales("model.layers.12"))
    report = bench.report(candidate, tmp_path)
    assert report.mean_kl_nats is None
    with pytest.raises(HealthError, match=r"model\.layers\.12 in model\.safetensors: scales are zero throughout"):
        require_healthy(report)
    (finding,) = [item for item in judge(bench.measured(candidate), HealthLimits()) if "layers" in item.where]
    assert finding.where == "model.layers.12 in model.safetensors"


def test_a_nan_stops_before_and_after_loading(bench: Bench, tmp_path: Path) -> None:
    tensor = "model.layers.20.mlp.down_proj.weight_scale"
    candidate = bench.damaged(tmp_path / "model", poison(tensor))
    with pytest.raises(HealthError, match=rf"(?s)model\.layers\.20 in .*not finite.*'{tensor}' \(1 of "):
        require_healthy(bench.report(candidate, tmp_path))
    findings = judge(bench.measured(candidate), HealthLimits())
    assert [item.where for item in findings] == ["model.layers.20 in model.safetensors", "logits"]


def test_a_truncated_shard_stops_at_once(bench: Bench, tmp_path: Path) -> None:
    size = (bench.made / "int4" / "model.safetensors").stat().st_size
    candidate = bench.damaged(tmp_path / "model", lambda file: os.truncate(file, size - 1_000_000))
    with pytest.raises(HealthError, match=rf"model\.safetensors: truncated: expected {size:,} bytes, found"):
        require_healthy(bench.report(candidate, tmp_path))
    assert not (tmp_path / "health.log").exists()


def test_a_format_without_a_loader_here_is_not_checked(bench: Bench, tmp_path: Path) -> None:
    def other_format(file: Path) -> None:
        config = read_json(file.parent / "config.json")
        config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        write_json(file.parent / "config.json", config)

    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("bitsandbytes checkpoints are run where there is CUDA")
    report = bench.report(bench.damaged(tmp_path / "model", other_format), tmp_path)
    assert report.status == "not checked"
    assert "bitsandbytes" in report.reason
    assert report.metrics() == {}


def test_a_base_that_does_not_load_is_not_the_candidates_fault(bench: Bench, tmp_path: Path) -> None:
    broken = tmp_path / "base"
    shutil.copytree(bench.base, broken)
    (broken / "config.json").write_text('{"model_type": "no such model"}')
    with pytest.raises(ToolError, match=r"pipeline\.health\.worker failed"):
        run_health(broken, bench.made / "int4", bench.tokens, tmp_path)

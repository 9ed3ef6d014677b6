"""Every benchmark uses the product as it is: it imports, and runs the product's own stages."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from benchmarks.distill import stages_of
from core.store import StageStore
from pipeline.config import CalibConfig
from tests.unit.pipeline.distill.jobs import LENGTH, a_config
from tests.unit.pipeline.distill.tiny_model import TEXT, write_model

BENCHMARKS = sorted(path.stem for path in (Path(__file__).resolve().parents[3] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_imports(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")


def test_the_distillation_benchmark_runs_the_products_own_stages(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join([TEXT] * 40))
    config = a_config(data__sources=[str(text)], data__max_tokens=10 * (LENGTH + 1))
    calib = CalibConfig(sources=[str(text)], num_samples=2, length=LENGTH)
    stage, effects = stages_of(write_model(tmp_path / "model"), config, calib, StageStore(tmp_path / "home" / "store"))
    rows = np.load(effects.result(stage.rows))
    assert rows.dtype == np.int32
    assert rows.shape[1] == LENGTH + 1
    assert effects.result(stage.base).path == (tmp_path / "model").resolve()
    assert {stage.base.key, stage.student.key} <= {one.key for one in stage.needs}

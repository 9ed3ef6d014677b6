"""The real path on the real 135M model, with a few items: one store for all integration tests of a session.

The store lives in a folder of its own, so that every stage runs for real; only the downloaded wheels and the
dequantized base model are taken from the user's cache, where `fetch` and `base` would find them anyway.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from core.environments import home
from core.store import StageStore
from pipeline.stages.base import DequantizedBase
from pipeline.stages.graph import Effects
from pipeline.types import Artifact

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "gate.order=uniform", "gate.max_items=6", "gate.stop_early=false", "gate.price_rounds=2", "gate.price_repeats=1",
    "calib.num_samples=2", "calib.length=64", "load.num_repeats=2",
]  # fmt: skip
POINTS = (
    "load.points=[{concurrency: 1, input_tokens: 32, output_tokens: 8, num_requests: 1},"
    "{concurrency: 4, input_tokens: 32, output_tokens: 8, num_requests: 4},"
    "{concurrency: 4, input_tokens: 64, output_tokens: 2, num_requests: 4},"
    "{concurrency: 4, input_tokens: 8, output_tokens: 8, num_requests: 4}]"
)
SHARED_STAGES = ("fetch", "base", "datasets")


@dataclass(frozen=True)
class Workplace:
    """A store and a tracking store of the tests' own."""

    home: Path
    tracking: Path

    @property
    def arguments(self) -> list[str]:
        """What every command is told."""
        return [
            f"home={self.home}",
            f"tracking.uri=sqlite:///{self.tracking}/mlflow.db",
            f"tracking.artifacts={self.tracking}/artifacts",
        ]

    def command(self, *arguments: str, verb: str = "run") -> list[str]:
        """A command line of the product; an argument replaces the setting of the same key."""
        given = {argument.partition("=")[0] for argument in arguments}
        settings = [one for one in (*SMALL, POINTS, "load.mix=[32,8]") if one.partition("=")[0] not in given]
        return [sys.executable, "-m", "pipeline", verb, *settings, *self.arguments, *arguments]

    def run(self, *arguments: str, verb: str = "run", timeout_s: float = 500) -> subprocess.CompletedProcess[str]:
        """Run a command of the product to its end."""
        command = self.command(*arguments, verb=verb)
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout_s, env=os.environ.copy()
        )


def embedded_base(store: StageStore) -> Artifact:
    """The real 135M model, made in a store or found there."""
    return Effects(store, store.root.parent, Path(sys.executable)).result(DequantizedBase(134_515_008))


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A fresh store that shares the wheels and the base model with the user's cache."""
    folder = tmp_path_factory.mktemp("workplace")
    place = Workplace(folder / "home", folder / "tracking")
    (place.home / "store").mkdir(parents=True)
    for stage in SHARED_STAGES:
        shared = home() / "store" / stage
        shared.mkdir(parents=True, exist_ok=True)
        (place.home / "store" / stage).symlink_to(shared)
    return place

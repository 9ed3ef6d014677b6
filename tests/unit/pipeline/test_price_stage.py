"""The price stage among the others: at which points it measures, what it starts and ends, and what it takes up again.
Servers and the client are replaced by ones that note what they are told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import pytest

from core.errors import ToolError
from core.files import plain
from evals.config import SuiteConfig
from evals.load.scenario import from_config
from evals.types import LoadPoint, LoadReport, Price, PriceRounds, Target
from pipeline.config import CalibConfig, ModelConfig, RunConfig
from pipeline.serve.server import free_port
from pipeline.stages.graph import Effects
from pipeline.stages.price import InterleavedPrice
from pipeline.types import Artifact
from tests.unit.evals.test_interleaved import Client
from tests.unit.pipeline.plans import run_plan, stored
from tests.unit.pipeline.shapes import MACHINE

PRICE = Price("cpu", Decimal("0.1"), Decimal("0.1"), "on_demand", "test", "", 2)
POINT = {"concurrency": 1, "input_tokens": 32, "output_tokens": 8, "num_requests": 4}
LOAD = {"name": "one", "num_repeats": 2, "mix": [32, 8], "points": [POINT, {**POINT, "concurrency": 4}]}


@dataclass
class Served:
    """A server that only says that it is up."""

    up: ClassVar[list[str]] = []
    most: ClassVar[int] = 0
    artifact: Artifact
    engine: Any
    machine: Any
    python: Path
    log: Path
    on_start: Any
    startup_s: float | None = 1.0
    is_up: bool = field(default=False)

    @property
    def side(self) -> str:
        return "baseline" if self.artifact.method == "none" else "candidate"

    @property
    def speed_digest(self) -> str:
        return self.side

    def launch(self) -> Target:
        if not self.is_up:
            self.is_up = True
            Served.up.append(self.side)
            Served.most = max(Served.most, len(Served.up))
        return Target(f"http://{self.side}.1", "m", self.artifact.path, {}, self.side, self.side)

    target = launch

    def __enter__(self) -> Served:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_up:
            self.is_up = False
            Served.up.remove(self.side)


class Watched(Client):
    """The client of the driver's tests, that looks at these servers."""

    def __init__(self, **options: Any) -> None:
        super().__init__(self, **options)

    @property
    def up(self) -> set[str]:
        return set(Served.up)


@pytest.fixture
def config(tmp_path: Path) -> Iterator[RunConfig]:
    Served.up.clear()
    Served.most = 0
    yield RunConfig(
        model=ModelConfig(name="tiny", source="embedded", family="smollm2"),
        quant={"method": "int8"},
        calib=CalibConfig(sources=["squad"], num_samples=4, length=64),
        suite=SuiteConfig(tasks=["arc_easy"]),
        load=LOAD,
        home=str(tmp_path / "home"),
        dry_run=True,
    )
    assert Served.up == [], "every server has ended"


def report(best: int) -> LoadReport:
    """A load of two points, of which that of `best` requests in flight is the faster one."""
    points = [
        LoadPoint(
            f"c{parallel}-32x8",
            parallel,
            32,
            8,
            ({"total_tok_per_s": 2.0 if parallel == best else 1.0, "req_per_s": 1.0},),
            0,
            num_requests=4,
        )
        for parallel in (1, 4)
    ]
    return LoadReport("one", tuple(points), mix=(32, 8))


def prepared(config: RunConfig, candidate: LoadReport, machine: Any = MACHINE) -> tuple[InterleavedPrice, Effects]:
    """A plan whose stages are all made, but for the price."""
    plan = run_plan(config, PRICE, from_config(LOAD), machine=machine)
    for stage in plan.stages:
        if stage.name == "load":
            result = plain(report(4) if stage.label == "none" else candidate)
        elif stage.name in ("base", "compress"):
            result = {"digest": stage.name, "num_bytes": 1, "method": "int8", "base_digest": None, "details": {}}
        else:
            result = {}
        if stage.name != "price" and not stage.is_given:
            stored(stage, plan.store, lambda folder, result=result: result)
    price = plan.variants.all[-1].price
    assert price is not None
    effects = Effects(plan.store, Path(config.home), Path("/serve/python"), serve=Served, say=lambda text: None)  # type: ignore[arg-type]
    return price, effects


@pytest.fixture
def artifacts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints without files: what a stage made is not looked at here."""

    def load(self: Any, found: Any) -> Artifact:
        return Artifact(found.folder, self.key, 1, "none" if self.name == "base" else "int8", None)

    for kind in ("base.DequantizedBase", "compress.Compress"):
        monkeypatch.setattr(f"pipeline.stages.{kind}.load", load)


def measured(price: InterleavedPrice, effects: Effects, client: Watched) -> PriceRounds:
    effects.launcher = client  # type: ignore[assignment]
    with effects.serving():
        return effects.result(price)


@pytest.mark.usefixtures("artifacts")
def test_both_are_measured_side_by_side_each_at_its_own_best_load(config: RunConfig) -> None:
    price, effects = prepared(config, report(1))
    found = measured(price, effects, Watched())
    assert (found.baseline_point, found.candidate_point) == ("c4-32x8", "c1-32x8")
    assert len(found.rounds) == 4
    assert [one.first for one in found.rounds] == ["baseline", "candidate"] * 2
    assert all(len(one.candidate_tok_per_s) == 2 for one in found.rounds)
    assert found.is_together
    assert Served.most == 2
    again = measured(price, effects, Watched(limit=0))
    assert again == found, "it is in the store"


@pytest.mark.usefixtures("artifacts")
def test_the_server_that_was_asked_before_ends_first(config: RunConfig) -> None:
    price, effects = prepared(config, report(4))
    effects.launcher = Watched()  # type: ignore[assignment]
    with effects.serving():
        price.candidate.served.start(effects).target()
        assert Served.up == ["candidate"]
        effects.result(price)
        assert Served.most == 2, "never three"


@pytest.mark.usefixtures("artifacts")
def test_one_after_the_other_where_memory_is_short(config: RunConfig) -> None:
    price, effects = prepared(config, report(4), replace(MACHINE, host_memory_bytes=6 * 2**30))
    found = measured(price, effects, Watched())
    assert not found.is_together
    assert Served.most == 1


@pytest.mark.usefixtures("artifacts")
def test_a_killed_stage_and_a_larger_one_take_up_what_is_measured(config: RunConfig) -> None:
    price, effects = prepared(config, report(4))
    with pytest.raises(ToolError, match="killed"):
        measured(price, effects, Watched(limit=14))  # two whole rounds of 6 runs, and a part of the third
    client = Watched()
    assert len(measured(price, effects, client).rounds) == 4
    assert len(client.ran) == 2 * 6
    more = replace(price, num_rounds=6)
    assert more.key != price.key
    client = Watched()
    assert len(measured(more, effects, client).rounds) == 6
    assert len(client.ran) == 2 * 6
    stored_result = effects.found(more).result
    assert stored_result["work_share"] == pytest.approx(2 / 6), "later estimates do not rest on a part"
    assert effects.result(price).earlier_looks == 0
    assert effects.result(more).earlier_looks == 1, "the price was told from 4 rounds before"
    fewer = measured(replace(price, num_rounds=2), effects, Watched(limit=0))
    assert fewer.earlier_looks == 2, "also a smaller number is another look"


@pytest.mark.usefixtures("artifacts")
def test_a_load_without_a_throughput_gives_no_rounds_and_says_why(config: RunConfig) -> None:
    nothing = replace(report(4), points=tuple(replace(one, repeats=({},)) for one in report(4).points))
    price, effects = prepared(config, nothing)
    found = measured(price, effects, Watched(limit=0))
    assert found == PriceRounds(missing="the candidate's load has no point with a throughput")


def test_no_port_is_given_twice() -> None:
    ports = [free_port() for _ in range(300)]
    assert len(set(ports)) == 300

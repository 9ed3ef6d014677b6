"""What of the stage cache may go."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import UserError
from core.store import StageResult, StageStore, lock
from pipeline.cli import prune
from pipeline.record.cache import CachedStage, Needs, cached_stages, needs_of, prunable, remove, stage_lock

NOW = datetime(2026, 11, 20, tzinfo=UTC)
OLD, RECENT = 100.0, 1.0


def made(store: StageStore, stage: str, age_days: float, inputs: Any, **result: Any) -> StageResult:
    def make(folder: Path) -> dict[str, Any]:
        (folder / "weights").write_text("x" * 1000)
        return result or {"n": 1}

    found = store.run(stage, inputs, make)
    set_age(found.folder / "stage.json", age_days)
    return found


def set_age(path: Path, days: float) -> None:
    moment = (NOW - timedelta(days=days)).timestamp()
    os.utime(path, (moment, moment))


def names(stages: list[CachedStage]) -> list[str]:
    return [one.folder.name for one in stages]


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    return StageStore(tmp_path / "home" / "store")


def may_go(store: StageStore, needs: Needs, days: float = 30) -> list[str]:
    return names(prunable(cached_stages(store.root), needs, NOW - timedelta(days=days)))


def a_run(**tags: str) -> Any:
    return SimpleNamespace(data=SimpleNamespace(tags=tags))


def test_old_stages_go_and_younger_ones_stay_with_what_they_were_made_from(store: StageStore) -> None:
    base = made(store, "base", OLD, {"wheel": "a"}, digest="b" * 64)
    other = made(store, "base", OLD, {"wheel": "b"}, digest="c" * 64)
    compress = made(store, "compress", OLD, {"base": "b" * 64}, digest="d" * 64)
    quality = made(store, "quality", RECENT, {"gate": {"baseline": compress.key}})
    assert may_go(store, Needs(frozenset())) == [other.key]
    assert set(may_go(store, Needs(frozenset()), days=0.5)) == {one.key for one in (base, other, compress, quality)}


def test_what_a_run_or_a_version_names_stays(store: StageStore) -> None:
    base = made(store, "base", OLD, {"wheel": "a"}, digest="b" * 64)
    compress = made(store, "compress", OLD, {"base": "b" * 64}, digest="d" * 64)
    load = made(store, "load", OLD, {"target": "x"})
    by_path = needs_of([a_run(artifact_path=str(compress.folder / "model"))])
    assert may_go(store, by_path) == [load.key]
    by_key = needs_of([a_run(stage_keys=f'{{"load": "{load.key}"}}', stage_key="none")])
    assert set(may_go(store, by_key)) == {base.key, compress.key}
    assert may_go(store, needs_of([a_run(stage_key=compress.key)])) == [load.key]


def test_a_run_that_names_no_stages_needs_every_measurement_since_its_oldest(store: StageStore) -> None:
    before = made(store, "quality", 90, {"n": 1})
    made(store, "quality", 80, {"n": 2})
    compress = made(store, "compress", 80, {"n": 3})
    needs = needs_of([a_run(measured_at=(NOW - timedelta(days=85)).isoformat())])
    assert may_go(store, needs) == [before.key, compress.key]


def test_what_a_killed_run_left_goes_by_its_age(store: StageStore) -> None:
    partial = store.root / "compress" / ".abc.partial"
    partial.mkdir(parents=True)
    (partial / "log").write_text("half")
    for path in (partial / "log", partial):
        set_age(path, OLD)
    assert may_go(store, Needs(frozenset())) == [".abc.partial"]
    (partial / "log").write_text("it goes on")
    assert may_go(store, Needs(frozenset())) == []


def test_a_stage_that_a_process_makes_is_never_removed(store: StageStore) -> None:
    made(store, "quality", OLD, {"n": 1})
    (one,) = cached_stages(store.root)
    with lock(stage_lock(one)):
        assert not remove(one)
        assert one.folder.exists()
    assert remove(one)
    assert not one.folder.exists()


def the_command(home: Path, *arguments: str) -> list[str]:
    return [f"home={home}", f"tracking.uri=sqlite:///{home}/mlflow.db", *arguments]


def test_the_verb_lists_and_deletes_only_with_yes(store: StageStore, capsys: pytest.CaptureFixture[str]) -> None:
    home = store.root.parent
    gone = made(store, "quality", 10_000, {"n": 1})
    stays = made(store, "quality", -10_000, {"n": 2})
    assert prune.main(the_command(home)) == 0
    said = capsys.readouterr().out
    assert gone.key in said
    assert stays.key not in said
    assert f"prune home={home} tracking.uri=sqlite:///{home}/mlflow.db --yes" in said
    assert gone.folder.exists()
    with lock(home / "machine.lock", shared=True), pytest.raises(UserError, match="a run computes"):
        prune.main(the_command(home, "--yes"))
    assert gone.folder.exists()
    capsys.readouterr()
    assert prune.main(the_command(home, "--yes")) == 0
    assert "deleted 1 stages" in capsys.readouterr().out
    assert not gone.folder.exists()
    assert stays.folder.exists()
    assert prune.main(the_command(home)) == 0
    assert "nothing is older than 30 days" in capsys.readouterr().out
    assert not (home / "mlflow.db").exists()

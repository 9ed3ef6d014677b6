"""Candidates are counted once each, whoever starts when, and nothing of it can be taken back."""

import multiprocessing
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ConfigError
from finops.controls.attempts import Attempts, Declared, Slot
from finops.ledger import schema
from finops.ledger.ledger import Ledger

RULE = {"tasks": ["piqa"], "alpha": 0.05}


def anything(declared: Declared) -> None:
    """Every rule may follow every other."""


def claim(url: str, attempt: str, batch_size: int = 1, family: str = "f", rule: dict[str, object] = RULE) -> Slot:
    ledger = Ledger(url)
    try:
        return Attempts(ledger).claim(family, ["piqa"], rule, attempt, batch_size, anything)
    finally:
        ledger.close()


def test_single_candidates_are_batches_of_one_and_keep_their_place(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    assert [claim(url, name).batch for name in ("a", "b", "a", "c", "b")] == [1, 2, 1, 3, 2]
    assert claim(url, "a") == Slot(1, 1, 3)


def test_a_sweep_shares_one_batch_and_a_later_sweep_has_another(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    first = [claim(url, name, 2) for name in ("a", "b")]
    later = [claim(url, name, 2) for name in ("c", "a", "d", "e")]
    assert [one.batch for one in first] == [1, 1]
    assert [one.batch for one in later] == [2, 1, 2, 3]


def test_a_candidate_of_a_sweep_that_is_tried_alone_later_is_no_other_one(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    assert claim(url, "a", 4) == Slot(1, 4, 1)
    assert claim(url, "a", 1) == Slot(1, 4, 1)


def test_other_tasks_and_other_baselines_are_counted_apart(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    ledger = Ledger(url)
    attempts = Attempts(ledger)
    assert attempts.claim("f", ["piqa"], RULE, "a", 1, anything).batch == 1
    assert attempts.claim("f", ["piqa", "sciq"], RULE, "b", 1, anything).batch == 1
    assert attempts.claim("f", ["sciq", "piqa"], RULE, "c", 1, anything).batch == 2
    assert attempts.claim("g", ["piqa"], RULE, "d", 1, anything).batch == 1
    ledger.close()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 4)), max_size=12))
def test_no_batch_ever_holds_more_than_its_size(tmp_path_factory: pytest.TempPathFactory, tries: list) -> None:
    url = f"sqlite:///{tmp_path_factory.mktemp('ledger')}/ledger.db"
    places = {}
    for attempt, size in tries:
        place = claim(url, attempt, size)
        assert places.setdefault(attempt, (place.batch, place.batch_size)) == (place.batch, place.batch_size)
    batches = sorted(set(places.values()))
    assert len({batch for batch, _ in batches}) == len(batches), "one size per batch"
    for batch, size in batches:
        assert sum(place == (batch, size) for place in places.values()) <= size
    assert {batch for batch, _ in batches} == set(range(1, len(batches) + 1))


def test_a_rule_is_noted_where_it_changes_and_a_refused_one_leaves_no_trace(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    wider = {**RULE, "delta_points": 3}
    for rule in (RULE, RULE, wider, RULE):
        claim(url, "a", rule=rule)
    ledger = Ledger(url)
    attempts = Attempts(ledger)
    assert attempts.declared("f") == [RULE, wider]

    def refuse(declared: Declared) -> None:
        raise ConfigError(f"no: {len(declared)} were declared")

    with pytest.raises(ConfigError, match="no: 2 were declared"):
        attempts.claim("f", ["piqa"], {"tasks": []}, "new", 1, refuse)
    assert attempts.declared("f") == [RULE, wider]
    assert claim(url, "b").batch == 2
    ledger.close()


def test_what_was_tried_cannot_be_taken_back(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    claim(url, "a")
    ledger = Ledger(url)
    for table in (schema.attempts, schema.declared_rules):
        for statement in (sa.delete(table), sa.update(table).values(created_us=0)):
            with pytest.raises(sa.exc.DatabaseError, match="append-only"), ledger.database.write() as connection:
                connection.execute(statement)
    ledger.close()


def test_a_batch_of_no_candidate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        claim(f"sqlite:///{tmp_path}/ledger.db", "a", 0)


def _claim_in_process(url: str, name: str, gate: object, found: object) -> None:
    gate.wait()  # type: ignore[attr-defined]
    found.put(claim(url, name).batch)  # type: ignore[attr-defined]


def test_four_processes_at_once_get_four_numbers(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    context = multiprocessing.get_context("spawn")
    gate, found = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_claim_in_process, args=(url, name, gate, found)) for name in "abcd"]
    for process in processes:
        process.start()
    batches = sorted(found.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    assert batches == [1, 2, 3, 4]

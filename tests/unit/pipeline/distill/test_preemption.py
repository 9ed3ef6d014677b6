import os
import signal
import time
from decimal import Decimal
from pathlib import Path

import pytest

from pipeline.config import PreemptionConfig
from pipeline.distill.checkpoint import CheckpointStore
from pipeline.distill.preemption import Attempt, Books, InterruptedTrainingError, StopSignal, grace_problem, summary


@pytest.fixture
def stop():
    before = signal.getsignal(signal.SIGTERM)
    signal_ = StopSignal(25.0)
    signal_.install()
    yield signal_
    signal.signal(signal.SIGTERM, before)


def test_outside_a_step_the_signal_is_remembered(stop: StopSignal) -> None:
    assert (stop.received, stop.left_s) == (False, 25.0)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.received
    assert 24 < stop.left_s <= 25
    with pytest.raises(InterruptedTrainingError), stop:
        pytest.fail("a step began after the signal")


def test_inside_a_step_the_signal_raises_once(stop: StopSignal) -> None:
    def step() -> None:
        with stop:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
            pytest.fail("the signal did not raise")

    with pytest.raises(InterruptedTrainingError):
        step()
    os.kill(os.getpid(), signal.SIGTERM)  # while the checkpoint is written
    assert stop.received


def test_a_grace_shorter_than_a_checkpoint_is_a_problem() -> None:
    spot = PreemptionConfig(grace_s=10)
    assert grace_problem(spot, 1_000_000, 12_000_000.0) is None  # 1 s
    problem = grace_problem(spot, 100_000_000, 100_000_000.0)  # 12 s
    assert problem is not None
    assert "shorter than a checkpoint takes" in problem.message
    assert "12 s" in problem.message
    assert grace_problem(PreemptionConfig(grace_s=10, save_on_sigterm=False), 100_000_000, 100_000_000.0) is None


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("pipeline.distill.preemption.time", self)

    def monotonic(self) -> float:
        return self.now


def test_lost_work_is_what_lies_beyond_the_checkpoint_and_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    store = CheckpointStore(str(tmp_path))
    spot = PreemptionConfig(heartbeat_s=0)

    first = Books.open(store, spot, "spot", "36", None, started=clock.now)
    clock.now += 10  # loading counts as useful the first time
    first.begin()
    clock.now += 30
    checkpoint = (3, {"useful_s": first.useful_s})
    assert first.useful_s == 40
    clock.now += 7
    first.beat(5, wait=True)  # killed here: 2 steps and 7 s beyond the checkpoint

    clock.now += 1000  # waiting for a machine costs nothing
    second = Books.open(store, spot, "on_demand", "72", checkpoint, started=clock.now)
    clock.now += 4  # a restart's loading is lost
    second.begin()
    clock.now += 20
    assert second.useful_s == 60
    second.beat(9, ended="finished", wait=True)

    one, two = second.attempts
    assert (one.ended, one.lost_steps, one.lost_s, one.elapsed_s) == ("killed", 2, 11, 47)
    assert (two.ended, two.lost_s, two.elapsed_s) == ("finished", 0, 24)
    found = summary(second.attempts)
    assert found["train_wall_s"] == 71
    assert found["train_usd"] == Decimal(47) * 36 / 3600 + Decimal(24) * 72 / 3600
    assert found["lost_usd"] == Decimal(11) * 36 / 3600
    assert found["spot_coverage"] == pytest.approx(47 / 71)
    assert found["interruptions"][0]["lost_steps"] == 2
    assert found["train_wall_s"] - found["lost_s"] == second.useful_s


def test_an_attempt_without_any_checkpoint_is_lost_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    store = CheckpointStore(str(tmp_path))
    for _ in range(2):
        books = Books.open(store, PreemptionConfig(heartbeat_s=0), "spot", None, None, started=clock.now)
        books.begin()
        clock.now += 5
        books.beat(1, wait=True)
    third = Books.open(store, PreemptionConfig(), "spot", None, None, started=clock.now)
    assert [attempt.lost_s for attempt in third.attempts] == [5, 5, 0]
    found = summary(third.attempts)
    assert (found["lost_s"], found["lost_steps"], found["lost_usd"], found["train_usd"]) == (10, 2, None, None)


def test_heartbeats_are_as_frequent_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    store = CheckpointStore(str(tmp_path))
    writes: list[int] = []
    monkeypatch.setattr(store, "put_json", lambda name, value: writes.append(value[-1]["step"]))
    books = Books.open(store, PreemptionConfig(heartbeat_s=10), "spot", None, None, started=clock.now)
    books.begin()
    for step in range(1, 31):
        clock.now += 1
        books.beat(step)
        if books._thread is not None:
            books._thread.join()
    assert writes == [0, 10, 20, 30]


def test_an_unknown_price_is_not_zero() -> None:
    attempt = Attempt(1, "spot", None, 0, 5, elapsed_s=10)
    assert attempt.usd is None
    assert attempt.lost_usd is None

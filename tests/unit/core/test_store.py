import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import StoreError
from core.files import write_json
from core.store import StageHook, StageRef, StageResult, StageStore, stage_key


class Listener(StageHook):
    """Notes what it hears; refuses to let a stage start, or to hear its end, where it is told to."""

    def __init__(self, refuses: str = "") -> None:
        self.events: list[str] = []
        self._refuses = refuses

    def _note(self, event: str) -> None:
        self.events.append(event)
        if event == self._refuses:
            raise PermissionError(event)

    def started(self, ref: StageRef) -> None:
        self._note("started")

    def progressed(self, ref: StageRef, done: int, total: int) -> None:
        self._note(f"{done}/{total}")

    def finished(self, ref: StageRef, found: StageResult) -> None:
        self._note("finished")

    def failed(self, ref: StageRef, error: BaseException) -> None:
        self._note(f"failed: {type(error).__name__}")

    def reused(self, ref: StageRef, found: StageResult) -> None:
        self._note("reused")


def test_a_stage_is_made_once_and_then_reused(tmp_path: Path) -> None:
    listener = Listener()
    store = StageStore(tmp_path, hooks=(listener,))

    def make(folder: Path) -> dict:
        (folder / "file").write_text("data")
        return {"answer": 42}

    first = store.run("stage", {"x": 1}, make)
    second = store.run("stage", {"x": 1}, make)
    assert listener.events == ["started", "finished", "reused"]
    assert (first.reused, second.reused) == (False, True)
    assert second.result == {"answer": 42}
    assert (second.folder / "file").read_text() == "data"
    assert second.wall_s == first.wall_s


@given(st.dictionaries(st.text(min_size=1), st.integers() | st.text() | st.none(), max_size=4))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_other_inputs_make_another_stage(tmp_path: Path, inputs: dict) -> None:
    assert stage_key("a", inputs) != stage_key("b", inputs)
    assert stage_key("a", inputs) != stage_key("a", {**inputs, "one more": 1})


def test_a_failing_stage_leaves_nothing(tmp_path: Path) -> None:
    store = StageStore(tmp_path)

    def fail(folder: Path) -> dict:
        (folder / "half").write_text("half")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        store.run("stage", {}, fail)
    assert store.find("stage", stage_key("stage", {})) is None
    found: list[list[str]] = []

    def look(folder: Path) -> dict:
        found.append([path.name for path in folder.iterdir()])
        return {}

    assert store.run("stage", {}, look).reused is False
    assert found == [[]], "what the failed attempt wrote was still there"


def test_a_resumable_stage_finds_its_own_files_again(tmp_path: Path) -> None:
    store = StageStore(tmp_path)

    def fail(folder: Path) -> dict:
        (folder / "point-1").write_text("measured")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        store.run("stage", {}, fail, resumable=True)
    result = store.run("stage", {}, lambda folder: {"files": [p.name for p in folder.iterdir()]}, resumable=True)
    assert result.result == {"files": ["point-1"]}


def test_a_result_under_a_wrong_name_is_refused(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    made = store.run("stage", {}, lambda folder: {})
    write_json(made.folder / "stage.json", {"key": "another", "result": {}, "wall_s": 0.0})
    with pytest.raises(StoreError, match="remove the folder"):
        store.run("stage", {}, lambda folder: {})


def slow_stage(root: Path, log: Path, started: Path) -> None:
    def make(folder: Path) -> dict:
        started.touch()
        time.sleep(0.5)
        with log.open("a") as file:
            file.write("made\n")
        return {}

    StageStore(root).run("stage", {}, make)


def test_two_processes_make_a_stage_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = (tmp_path / "store", tmp_path / "log", tmp_path / "started")
    processes = [context.Process(target=slow_stage, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "made\n"


def test_a_killed_process_leaves_no_result_and_no_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started = tmp_path / "started"
    process = context.Process(target=slow_stage, args=(tmp_path / "store", tmp_path / "log", started))
    process.start()
    deadline = time.monotonic() + 60
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    store = StageStore(tmp_path / "store")
    assert store.find("stage", stage_key("stage", {})) is None
    assert store.run("stage", {}, lambda folder: {"after": "the kill"}).reused is False


def test_a_hook_that_refuses_stops_the_stage_and_those_that_started_hear_it(tmp_path: Path) -> None:
    first, second, third = Listener(), Listener("started"), Listener()
    made = []
    with pytest.raises(PermissionError):
        StageStore(tmp_path, (first, second, third)).run("stage", {}, lambda folder: made.append(1) or {})
    assert not made
    assert (first.events, second.events, third.events) == (["started", "failed: PermissionError"], ["started"], [])


def test_what_is_stored_stays_although_a_hook_fails_at_the_end(tmp_path: Path) -> None:
    deaf, other = Listener("finished"), Listener()
    with pytest.raises(PermissionError):
        StageStore(tmp_path, (deaf, other)).run("stage", {}, lambda folder: {"answer": 1})
    assert other.events == ["started", "finished"], "every hook hears the end"
    assert StageStore(tmp_path).run("stage", {}, lambda folder: {}).result == {"answer": 1}


def test_progress_reaches_the_hooks_and_can_stop_a_stage(tmp_path: Path) -> None:
    listener = Listener("2/3")
    store = StageStore(tmp_path, (listener,))
    ref = StageRef("stage", stage_key("stage", {}))

    def make(folder: Path) -> dict:
        for done in range(4):
            store.progressed(ref, done, 3)
        return {}

    with pytest.raises(PermissionError):
        store.run("stage", {}, make)
    assert listener.events == ["started", "0/3", "1/3", "2/3", "failed: PermissionError"]

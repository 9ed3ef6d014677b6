"""Measure a candidate and its baseline in turn: rounds of fresh servers, so that what drifts is in both figures.

    baseline started, candidate started     both at once where memory allows, else one after the other
    B C C B B C ...                         repeats, the order mirrored, so that a steady drift cancels within the round
    both ended                              the next round begins with the candidate

One client process makes all rounds. A finished round is one file, `rounds/<number>.json`: what was killed goes on with
the round that it was in, from fresh servers, and more rounds add to those there are.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from core.errors import ToolError
from core.files import digest_json, link_or_copy, plain, read_json, write_atomic, write_json
from core.jobs import LOCAL, Launcher
from evals.json_form import from_json
from evals.load.arguments import WARMUP, bench_arguments, run_seed, warmup_point
from evals.load.client import ClientJob, ClientRun
from evals.load.counters import machine_use
from evals.load.monitor import Monitor
from evals.load.run import FINISHED, client_environment, client_job, trace_point, write_trace
from evals.load.scenario import LoadScenario, PointSpec
from evals.load.summary import RawRun, summarise
from evals.load.trace import Arrival
from evals.types import LoadPoint, PriceRound, Target

Side = Literal["baseline", "candidate"]
Start = Callable[[Sequence[Side]], AbstractContextManager[Mapping[Side, Target]]]
"""Starts the servers of these sides anew, waits until they answer, and ends them with the block."""
WARMUP_REQUESTS = 2
"""Discarded at the start of each round: a fresh server's first requests allocate and choose kernels. Few, because each
round pays for them."""
LOOKS = "looks.json"
SEEDS_PER_ROUND = 1000
"""Each round has seeds of its own: prompts are new in every start anyway, and different ones average out."""


@dataclass(frozen=True)
class RoundDesign:
    """What is measured in each round, and how often."""

    baseline: PointSpec
    candidate: PointSpec
    """Each at the load point that its own price rests on."""
    num_rounds: int
    num_repeats: int
    """Repeats of each side in one round."""
    is_together: bool
    """Whether both servers may be up at once."""
    scenario: LoadScenario
    """Its time limit, warm-up and trace."""
    seed: int

    def point(self, side: Side) -> PointSpec:
        """The load point of a side."""
        return self.baseline if side == "baseline" else self.candidate

    def digest(self, targets: Mapping[Side, str]) -> str:
        """What makes rounds replications of one another, with the digests of the two targets: not how many they are."""
        scenario = self.scenario
        return digest_json(
            {
                "targets": dict(targets),
                "points": [self.baseline, self.candidate],
                "repeats": self.num_repeats,
                "together": self.is_together,
                "request_timeout_s": scenario.request_timeout_s,
                "warmup_output_tokens": scenario.warmup_output_tokens,
                "seed": self.seed,
            }
        )


def point_spec(point: LoadPoint, scenario: LoadScenario) -> PointSpec:
    """The setting that a load point was measured under.

    Raises:
        ConfigError: it replayed a trace that cannot be read any more.

    """
    if point.trace is not None and scenario.trace is not None:
        return trace_point(scenario.trace)[0]
    return PointSpec(
        point.input_tokens,
        point.output_tokens,
        max(point.num_requests, 1),
        concurrency=point.concurrency,
        request_rate=point.request_rate,
        prefix_share=point.prefix_share,
    )


def sides_in_order(index: int) -> tuple[Side, Side]:
    """Who is measured first in the round of this index, counted from 0: they take turns."""
    return ("baseline", "candidate") if index % 2 == 0 else ("candidate", "baseline")


def repeats_in_order(sides: Sequence[Side], num_repeats: int) -> list[tuple[Side, int]]:
    """Side and number of each repeat of a round; every second pass is mirrored.

    >>> [side[0] for side, _ in repeats_in_order(("baseline", "candidate"), 4)]
    ['b', 'c', 'c', 'b', 'b', 'c', 'c', 'b']
    """
    passes = [sides if repeat % 2 == 0 else tuple(reversed(sides)) for repeat in range(num_repeats)]
    return [(side, repeat) for repeat, order in enumerate(passes) for side in order]


def earlier_looks(known: Path, num_rounds: int) -> int:
    """How many other numbers of these rounds a price was told from before."""
    return len(_looks(known) - {num_rounds})


def note_look(known: Path, num_rounds: int) -> None:
    """Note that a price is told from so many of these rounds. Not safe for two processes at once: a stage that measures
    has the machine for itself.
    """
    write_json(known / LOOKS, sorted(_looks(known) | {num_rounds}))


def _looks(known: Path) -> set[int]:
    return set(read_json(known / LOOKS)) if (known / LOOKS).exists() else set()


def run_rounds(
    design: RoundDesign,
    start: Start,
    client_python: Path,
    workdir: Path,
    *,
    launcher: Launcher = LOCAL,
    env: Mapping[str, str] | None = None,
    on_round: Callable[[int, int], None] | None = None,
    known: Path | None = None,
    idle_limit_s: float = 3600.0,
) -> tuple[PriceRound, ...]:
    """Measure all rounds; those whose files are there already are read.

    Args:
        design: points, rounds and repeats.
        start: starts servers.
        client_python: the serving environment's interpreter.
        workdir: keeps the rounds (`rounds/`), raw results (`raw/`) and the client's log; give it again to resume.
        launcher: where the client runs.
        env: the client's whole environment; None takes ours.
        on_round: told (rounds done, of how many) after each round that was measured now.
        known: rounds of the same design (`RoundDesign.digest`) that other stages measured; ours are added.
        idle_limit_s: how long the client waits while servers start.

    Raises:
        ToolError: a server or the client failed. Requests that fail are no error: they are counted in the round.

    """
    session = _Session(design, start, workdir, on_round, known)
    if session.missing():
        shutil.rmtree(session.jobs, ignore_errors=True)
        job = client_job(client_python, workdir, client_environment(env), idle_limit_s)
        with closing(session.steps), Monitor(None) as session.monitor:
            # The client imports vLLM while the first servers start.
            launcher.run(job, on_line=session.see, meanwhile=session.advance)
        if session.missing():
            raise ToolError("the load client ended before all rounds were complete", workdir / "client.log")
    return tuple(session.read(index) for index in range(design.num_rounds))


class _Session:
    """Rounds on their way."""

    def __init__(
        self,
        design: RoundDesign,
        start: Start,
        workdir: Path,
        on_round: Callable[[int, int], None] | None,
        known: Path | None,
    ) -> None:
        self.design, self.start, self.workdir, self.on_round, self.known = design, start, workdir, on_round, known
        self.raw, self.jobs, self.rounds = workdir / "raw", workdir / "jobs", workdir / "rounds"
        self.monitor: Monitor | None = None
        self.steps = self._measure_missing()
        self._arrivals: list[Arrival] | None = None
        self._num_jobs = 0

    def missing(self) -> list[int]:
        """The rounds that have no file, counted from 0; known ones are taken first."""
        found = []
        for index in range(self.design.num_rounds):
            file = self._file(self.rounds, index)
            if not file.exists() and self.known is not None and self._file(self.known, index).exists():
                link_or_copy(self._file(self.known, index), file)
            if not file.exists():
                found.append(index)
        return found

    def read(self, index: int) -> PriceRound:
        """A finished round."""
        return from_json(PriceRound, read_json(self._file(self.rounds, index)))

    def see(self, line: str) -> None:
        """Follow the client: what it has finished is taken in, and the next job begins."""
        if line.startswith(FINISHED):
            self.advance()

    def advance(self) -> None:
        """Go on until the client has a new job, or an end."""
        runs = next(self.steps, None)
        if runs is None:
            write_atomic(self.jobs / "end", "")
            return
        self._num_jobs += 1
        job: ClientJob = {
            "request_timeout_s": self.design.scenario.request_timeout_s,
            "metrics_url": "",  # a look costs the server more than 10 ms
            "runs": runs,
        }
        write_json(self.jobs / f"{self._num_jobs:04d}.json", job)

    def _measure_missing(self) -> Generator[list[ClientRun], None, None]:
        """Yields a job with its servers up, and goes on when the client has done it."""
        for index in self.missing():
            for left in self.raw.glob(f"{_name(index)}-*"):  # a killed attempt's: from servers that are gone
                left.unlink()
            sides = sides_in_order(index)
            for group in (sides,) if self.design.is_together else ((side,) for side in sides):
                with self.start(group) as targets:
                    yield list(self._runs(index, group, targets))
            self._keep(index)

    def _runs(self, index: int, sides: Sequence[Side], targets: Mapping[Side, Target]) -> Iterator[ClientRun]:
        """A discarded repeat of each side, then those that count."""
        for side in sides:
            warmup = warmup_point(self.design.point(side), self.design.scenario)
            warmup = replace(warmup, num_requests=min(warmup.num_requests, WARMUP_REQUESTS))
            seed = run_seed(self.design.seed, warmup, WARMUP)
            yield {"result": None, "arguments": bench_arguments(targets[side], warmup, seed)}
        for side, repeat in repeats_in_order(sides, self.design.num_repeats):
            point = self.design.point(side)
            seed = run_seed(self.design.seed, point, SEEDS_PER_ROUND * (index + 1) + repeat)
            arguments = bench_arguments(targets[side], point, seed, self._trace(point, seed))
            yield {"result": _raw_name(index, side, repeat), "arguments": arguments}

    def _trace(self, point: PointSpec, seed: int) -> Path | None:
        replay = self.design.scenario.trace
        if point.trace is None or replay is None:
            return None
        if self._arrivals is None:
            self._arrivals = trace_point(replay)[1]
        return write_trace(self.workdir, self._arrivals, replay.speed, seed)

    def _keep(self, index: int) -> None:
        """Write a round's file from its raw results."""
        runs = {
            (side, repeat): self._raw(index, side, repeat)
            for side, repeat in repeats_in_order(sides_in_order(index), self.design.num_repeats)
        }
        rates = {
            side: tuple(
                summarise(runs[side, repeat]["bench"])["total_tok_per_s"] for repeat in range(self.design.num_repeats)
            )
            for side in sides_in_order(index)
        }
        samples = [] if self.monitor is None else [*self.monitor.samples, self.monitor.look()]
        began_s = min(run["started_monotonic_s"] for run in runs.values())
        ended_s = max(run["ended_monotonic_s"] for run in runs.values())
        found = PriceRound(
            baseline_tok_per_s=rates["baseline"],
            candidate_tok_per_s=rates["candidate"],
            first=sides_in_order(index)[0],
            ended_at=datetime.now(UTC).isoformat(timespec="seconds"),
            num_failed=sum(int(run["bench"]["failed"]) for run in runs.values()),
            counters=machine_use(samples, began_s, ended_s),
        )
        file = self._file(self.rounds, index)
        write_json(file, plain(found))
        if self.known is not None:
            link_or_copy(file, self._file(self.known, index))
        if self.on_round is not None:
            self.on_round(self.design.num_rounds - len(self.missing()), self.design.num_rounds)

    def _raw(self, index: int, side: Side, repeat: int) -> RawRun:
        path = self.raw / _raw_name(index, side, repeat)
        if not path.exists():
            raise ToolError(f"the load client left no result: {path}", self.workdir / "client.log")
        found: RawRun = read_json(path)
        return found

    def _file(self, folder: Path, index: int) -> Path:
        return folder / f"{_name(index)}.json"


def _name(index: int) -> str:
    return f"round-{index + 1:04d}"


def _raw_name(index: int, side: Side, repeat: int) -> str:
    return f"{_name(index)}-{side}-r{repeat}.json"

"""The price stage: candidate and baseline measured in turn at their headline points, with fresh servers each round.

Both load stages say at which point each price rests. This one measures there again, because two loads that were taken
one after the other differ by whatever changed on the machine between them, and because one start says nothing of the
next. Where theta_slo was searched there is no such stage: the searched brackets are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.files import plain
from core.store import StageResult
from evals.json_form import from_json
from evals.load.interleaved import RoundDesign, Side, earlier_looks, note_look, point_spec, run_rounds
from evals.load.summary import headline_point
from evals.load.tokens import headline_tokens
from evals.types import PriceRounds, Target
from pipeline.serve.engine import server_environment
from pipeline.serve.memory import fit_together
from pipeline.serve.server import ServedModel
from pipeline.stages.graph import WORK_SHARE, Effects, Stage, Work
from pipeline.stages.load import Load
from pipeline.stages.served import Served

START_S = 14.0
"""Seconds that one server takes to start, on two cores: for estimates."""


@dataclass(frozen=True)
class InterleavedPrice(Stage[PriceRounds]):
    """Measure a candidate beside its baseline."""

    candidate: Load
    baseline: Load
    num_rounds: int
    num_repeats: int
    label: str
    name = "price"
    fixed_s = 15.0
    resumable = True
    machine_use = "alone"

    @property
    def inputs(self) -> Mapping[str, object]:
        """Both loads (checkpoint, engine, machine, scenario and tools are in their keys), and the rounds."""
        return {
            "candidate": self.candidate.key,
            "baseline": self.baseline.key,
            "rounds": self.num_rounds,
            "repeats": self.num_repeats,
            "together": self.is_together,
        }

    @property
    def work(self) -> Work:
        """The tokens of both sides, and their starts."""
        tokens = 2 * self.num_rounds * self.num_repeats * headline_tokens(self.candidate.scenario)
        served = self.candidate.served
        return Work(served.method, served.num_parameters, tokens, fixed_s=self.fixed_s + 2 * self.num_rounds * START_S)

    @property
    def needs(self) -> tuple[Stage[object], ...]:
        """Both checkpoints, and the loads that say at which points they are compared."""
        loads = (self.baseline, self.candidate)
        return (*(load.served.checkpoint for load in loads), *loads)

    @property
    def is_together(self) -> bool:
        """Whether both servers may be up at once."""
        ours, theirs = self.candidate.served, self.baseline.served
        sizes = (ours.num_parameters, theirs.num_parameters)
        return fit_together((ours.engine, theirs.engine), sizes, ours.machine)

    def run(self, folder: Path, effects: Effects) -> Mapping[str, object]:
        """Start, measure and end both servers, round by round.

        Raises:
            ToolError: vLLM or its client failed; the message ends with its log.

        """
        points = {"baseline": headline_point(effects.result(self.baseline))}
        points["candidate"] = headline_point(effects.result(self.candidate))
        for side, point in points.items():
            if point is None:
                return dict(plain(PriceRounds(missing=f"the {side}'s load has no point with a throughput")))
        effects.end_server()  # the one that was asked and measured before: it would share the machine
        design = RoundDesign(
            **{side: point_spec(point, self.candidate.scenario) for side, point in points.items() if point is not None},
            num_rounds=self.num_rounds,
            num_repeats=self.num_repeats,
            is_together=self.is_together,
            scenario=self.candidate.scenario,
            seed=self.candidate.seed,
        )
        progress, counts = effects.progress(self), [0]

        def on_round(done: int, total: int) -> None:
            counts[0] += 1
            effects.say(f"{self.candidate.served.name}: price: round {done} of {total}")
            progress(done, total)

        digests = {side: served(effects, one).speed_digest for side, one in self._sides.items()}
        known = effects.home / "points" / self.candidate.known_points / f"rounds-{design.digest(digests)[:24]}"
        looks = earlier_looks(known, self.num_rounds)
        rounds = run_rounds(
            design,
            lambda sides: self._started(effects, sides),
            self.candidate.served.python,
            folder,
            launcher=effects.launcher,
            env=server_environment(self.candidate.served.engine, self.candidate.served.machine),
            on_round=on_round,
            known=known,
            idle_limit_s=60 + 2 * self.candidate.served.engine.startup_timeout_s,
        )
        note_look(known, self.num_rounds)
        found = PriceRounds(design.baseline.name, design.candidate.name, self.is_together, rounds, looks)
        return {**plain(found), WORK_SHARE: counts[0] / self.num_rounds}

    @property
    def _sides(self) -> dict[Side, Served]:
        return {"baseline": self.baseline.served, "candidate": self.candidate.served}

    @contextmanager
    def _started(self, effects: Effects, sides: Sequence[Side]) -> Iterator[Mapping[Side, Target]]:
        """Fresh servers of these sides. On a CPU they start at the same time; on a GPU one after the other, because
        vLLM measures how much of its memory is free while it starts.
        """
        with ExitStack() as stack:
            models = {side: stack.enter_context(served(effects, self._sides[side])) for side in sides}
            for model in models.values():
                model.launch() if self.candidate.served.machine.device == "cpu" else model.target()
            yield {side: model.target() for side, model in models.items()}

    def load(self, found: StageResult) -> PriceRounds:
        """The rounds."""
        return from_json(PriceRounds, found.result)


def served(effects: Effects, one: Served) -> ServedModel:
    """A server of its own, not started yet."""
    return effects.new_server(effects.result(one.checkpoint), one.engine, one.machine)

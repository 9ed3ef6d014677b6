"""What a run is expected to take and cost, and what it then took: the plan's estimate, stage by stage.

Recorded stages of similar work give the estimate (`finops.reports.estimates`); before there are any, a rough rule that
says so. A stage that the same settings led to before, and that the store still has, is not estimated: it will be
reused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from core.console import duration, say, table
from core.files import write_atomic
from evals.load.scenario import LoadScenario
from finops.errors import LedgerUnavailableError
from finops.ledger.rates import priced_rate
from finops.money import round_decimals, usd_text
from pipeline.billing.terms import Work, kind_of, ledger_file, ledger_url, planned_works, resource_of
from pipeline.config import RunConfig
from pipeline.types import Plan, StageOutcome

if TYPE_CHECKING:
    from finops.ledger.ledger import Ledger
    from finops.reports.estimates import StageEstimate, StageWork

KNOWN = "known-stages"
"""Folder of the cache: settings of a stage -> the key under which the store has it."""
SHARED = "shared"
"""In place of a variant's name: what several of them need."""
Place = tuple[str, str]
"""Variant and stage."""


class Forecast:
    """The stages that a plan foresees. `open_ledger` is called by the first look at what was recorded."""

    def __init__(
        self, config: RunConfig, plan: Plan, scenario: LoadScenario, open_ledger: Callable[[], Ledger]
    ) -> None:
        self._config, self._plan, self._open_ledger = config, plan, open_ledger
        self._resource = resource_of(plan.price, plan.machine, "")
        self.works = planned_works(config, plan, scenario)
        self.stages: dict[Place, StageEstimate] = {}
        """The estimates of the stages that are still to run."""

    def show(self) -> None:
        """Print expected time and cost of the stages that are still to run; of a dry run without touching the ledger.

        Raises:
            LedgerUnavailableError: the ledger cannot be used, and this is no dry run.

        """
        to_run = [work for work in self.works if not self._is_known(work)]
        self.stages = dict(zip(map(_place, to_run), self._estimates_of(to_run), strict=True))
        if not to_run:
            say("Estimate every stage is in the store: nothing to spend")
            say()
            return
        rows = [_estimate_row(work, self.stages[_place(work)]) for work in to_run]
        found = self.stages.values()
        total = [
            sum(values) for values in zip(*((one.expected_s, one.low_s, one.high_s) for one in found), strict=True)
        ]
        usd = [sum(values, Decimal(0)) for values in zip(*map(_usd_of, found), strict=True)]
        rows.append(("all", "", _range(*total), _usd_range(*usd), ""))
        table("Estimate", ("variant", "stage", "time", "USD", "from"), rows)
        say()

    @property
    def high_usd(self) -> Decimal:
        """Upper end of the estimate: what is reserved, and what an approval is asked for."""
        return sum((one.high_usd for one in self.stages.values()), Decimal(0))

    def _estimates_of(self, works: list[Work]) -> list[StageEstimate]:
        if not works:
            return []
        from finops.reports.estimates import estimate_run

        rate = priced_rate(self._plan.price)
        asked = [self.stage_work(work) for work in works]
        file = ledger_file(ledger_url(self._config))
        if self._config.dry_run and file is not None and not file.exists():
            return _rough(asked, rate.usd_per_hour)
        try:
            return list(estimate_run(self._open_ledger(), asked, rate).stages)
        except LedgerUnavailableError as error:
            if not self._config.dry_run:
                raise
            say(f"Note     the estimates follow a rough rule: {str(error).splitlines()[0]}")
            return _rough(asked, rate.usd_per_hour)

    def stage_work(self, work: Work) -> StageWork:
        """The work as `finops.reports.estimates` compares it."""
        from finops.reports.estimates import StageWork

        machine = self._plan.machine
        return StageWork(
            stage=work.stage,
            method=work.method,
            hardware=self._resource.accelerator,
            kind=kind_of(machine),
            num_parameters=work.num_parameters,
            num_tokens=work.num_tokens,
            num_devices=self._resource.num_devices,
        )

    @property
    def terms(self) -> dict[str, dict[str, str]]:
        """Per variant and stage the upper end to two digits: what an approval binds to."""
        return {"/".join(place): _terms(one) for place, one in self.stages.items()}

    def work(self, place: Place) -> Work | None:
        """The planned stage at a place; None where no plan foresees it."""
        return next((work for work in self.works if _place(work) == place), None)

    def add(self, work: Work) -> StageEstimate:
        """Estimate a stage that was taken for done and runs after all."""
        self.stages[_place(work)] = found = self._estimates_of([work])[0]
        return found

    def found_again_as(self, work: Work, key: str) -> None:
        """Remember under which key the store has the stage of these settings."""
        write_atomic(self._known_file(work), key)

    def outcome(self, place: Place, wall_s: float, charged_usd: Decimal) -> StageOutcome:
        """A stage that ran, beside its estimate."""
        guess = self.stages.get(place)
        expected = (None, None) if guess is None else (guess.expected_s, guess.expected_usd)
        return StageOutcome(*place, expected[0], wall_s, expected[1], charged_usd)

    def save(self, ledger: Ledger, run_id: str, ran: Sequence[Place]) -> None:
        """Keep the estimates of the stages that ran, variants added up, to hold them against what was charged."""
        from finops.reports.estimates import RunEstimate, save_estimate

        by_stage: dict[str, list[StageEstimate]] = defaultdict(list)
        for place in ran:
            if place in self.stages:
                by_stage[place[1]].append(self.stages[place])
        save_estimate(ledger, run_id, RunEstimate(tuple(map(_added, by_stage.values()))))

    def _known_file(self, work: Work) -> Path:
        return Path(self._config.home) / KNOWN / work.identity

    def _is_known(self, work: Work) -> bool:
        """Whether the store has the stage that these settings led to before."""
        with suppress(OSError):
            key = self._known_file(work).read_text()
            return (Path(self._config.home) / "store" / work.stage / key / "stage.json").exists()
        return False


def show_outcomes(outcomes: Sequence[StageOutcome]) -> None:
    """Print estimate against actual of the stages that ran."""
    header = ("variant", "stage", "expected", "took", "ratio", "expected USD", "charged USD")
    say()
    table("Estimate against actual", header, [_outcome_row(one) for one in outcomes])


def _place(work: Work) -> tuple[str, str]:
    return work.label, work.stage


def _usd_of(one: StageEstimate) -> tuple[Decimal, Decimal, Decimal]:
    return one.expected_usd, one.low_usd, one.high_usd


def _terms(one: StageEstimate) -> dict[str, str]:
    from finops.reports.estimates import RunEstimate

    return RunEstimate((one,)).approval_terms


def _rough(works: list[StageWork], usd_per_hour: Decimal) -> list[StageEstimate]:
    """The rough rule alone, where there is no ledger to look into."""
    from finops.reports.estimates import ROUGH_FACTOR, StageEstimate, rough_seconds

    found = []
    for work in works:
        expected = rough_seconds(work)
        times = (expected, expected / ROUGH_FACTOR, expected * ROUGH_FACTOR)
        per_s = usd_per_hour * work.num_devices / 3600
        usd = [round_decimals(per_s * Decimal(repr(seconds)), 6) for seconds in times]
        found.append(StageEstimate(work.stage, *times, usd[0], usd[1], usd[2], f"rough rule for {work.kind}"))
    return found


def _added(parts: list[StageEstimate]) -> StageEstimate:
    from finops.reports.estimates import StageEstimate

    return StageEstimate(
        stage=parts[0].stage,
        expected_s=sum(one.expected_s for one in parts),
        low_s=sum(one.low_s for one in parts),
        high_s=sum(one.high_s for one in parts),
        expected_usd=sum((one.expected_usd for one in parts), Decimal(0)),
        low_usd=sum((one.low_usd for one in parts), Decimal(0)),
        high_usd=sum((one.high_usd for one in parts), Decimal(0)),
        basis="; ".join(dict.fromkeys(one.basis for one in parts)),
    )


def _range(expected: float, low: float, high: float) -> str:
    return f"{duration(expected)} ({duration(low)} to {duration(high)})"


def _usd_range(expected: Decimal, low: Decimal, high: Decimal) -> str:
    return f"{usd_text(expected)} ({usd_text(low)} to {usd_text(high)})"


def _estimate_row(work: Work, one: StageEstimate) -> tuple[str, ...]:
    times, usd = _range(one.expected_s, one.low_s, one.high_s), _usd_range(*_usd_of(one))
    return work.label or SHARED, work.stage, times, usd, one.basis.partition(":")[0]


def _outcome_row(one: StageOutcome) -> tuple[str, ...]:
    expected = "no estimate" if one.expected_s is None else duration(one.expected_s)
    ratio = f"x{one.actual_s / one.expected_s:.2f}" if one.expected_s else ""
    usd = "" if one.expected_usd is None else usd_text(one.expected_usd)
    return one.label or SHARED, one.stage, expected, duration(one.actual_s), ratio, usd, usd_text(one.charged_usd)

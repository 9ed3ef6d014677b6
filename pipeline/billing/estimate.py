"""What a run is expected to take and cost, and what it then took: the plan's pending stages, one by one.

Recorded stages of similar work give the estimate (`finops.reports.estimates`). Before there are any, a rough rule does,
and says so. What the store has is not estimated: it will be reused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal

from core.console import duration, say, table
from core.store import StageRef
from finops.errors import LedgerUnavailableError
from finops.ledger.ledger import Ledger
from finops.ledger.rates import priced_rate
from finops.money import usd_text
from finops.pricing.prices import Price
from finops.reports.estimates import estimate_run
from finops.reports.work import StageEstimate, StageWork, rough_estimate, two_digits_up
from pipeline.billing.terms import kind_of, ledger_file, resource_of
from pipeline.stages.graph import Stage
from pipeline.types import Machine, StageOutcome

SHARED = "shared"
"""In place of a variant's name: what several of them need."""
VariantStage = tuple[str, str]
"""Variant and stage, as tables show them."""


class Estimates:
    """The estimates of a plan's pending stages.

    Args:
        stages: what must run, in order.
        price: of the machine.
        machine: where it will run.
        ledger: URL of the ledger, where similar stages were recorded.
        open_ledger: called by its first use.
        dry_run: then a ledger that is not there is not created, and one that fails is no error.

    """

    def __init__(
        self,
        stages: Sequence[Stage[object]],
        price: Price,
        machine: Machine,
        ledger: str,
        open_ledger: Callable[[], Ledger],
        *,
        dry_run: bool,
    ) -> None:
        self.stages = tuple(stages)
        self._price, self._machine, self._dry_run = price, machine, dry_run
        self._resource = resource_of(price, machine, "")
        self._ledger, self._open_ledger = ledger, open_ledger
        self.of: dict[str, StageEstimate] = {}
        """Stage key -> its estimate; filled by `make`."""

    def make(self) -> None:
        """Look up similar stages.

        Raises:
            LedgerUnavailableError: the ledger cannot be used, and this is no dry run.

        """
        stage_works = [self.work_of(stage) for stage in self.stages]
        self.of = dict(zip((stage.key for stage in self.stages), self._estimated(stage_works), strict=True))

    def _estimated(self, stage_works: list[StageWork]) -> list[StageEstimate]:
        rate = priced_rate(self._price)
        file = ledger_file(self._ledger)
        if not stage_works or (self._dry_run and file is not None and not file.exists()):
            return [rough_estimate(work, rate.usd_per_hour) for work in stage_works]
        try:
            return list(estimate_run(self._open_ledger(), stage_works, rate).stages)
        except LedgerUnavailableError as error:
            if not self._dry_run:
                raise
            say(f"Note     the estimates follow a rough rule: {str(error).splitlines()[0]}")
            return [rough_estimate(work, rate.usd_per_hour) for work in stage_works]

    def quote(self, stage: Stage[object], num_tokens: int) -> StageEstimate:
        """The estimate of a stage that no plan has, for so many tokens."""
        return self._estimated([replace(self.work_of(stage), num_tokens=num_tokens)])[0]

    def work_of(self, stage: Stage[object]) -> StageWork:
        """A stage's work as recorded stages are compared by."""
        work = stage.work
        return StageWork(
            stage=stage.name,
            method=work.method,
            hardware=self._resource.accelerator,
            kind=kind_of(self._machine),
            num_parameters=work.num_parameters,
            num_tokens=work.num_tokens,
            num_devices=self._resource.num_devices,
            passes=work.passes,
            num_bytes=work.num_bytes,
            fixed_s=stage.fixed_s if work.fixed_s is None else work.fixed_s,
        )

    def show(self) -> None:
        """Print expected time and cost of every pending stage."""
        if not self.stages:
            say("Estimate every stage is in the store: nothing to spend")
            say()
            return
        rows = [_estimate_row(stage, self.of[stage.key]) for stage in self.stages]
        found = list(self.of.values())
        times = [
            sum(one.expected_s for one in found),
            sum(one.low_s for one in found),
            sum(one.high_s for one in found),
        ]
        usd = [
            sum((one.expected_usd for one in found), Decimal(0)),
            sum((one.low_usd for one in found), Decimal(0)),
            self.high_usd,
        ]
        rows.append(("all", "", _range(*times), _usd_range(*usd), ""))
        table("Estimate", ("variant", "stage", "time", "USD", "from"), rows)
        say()

    @property
    def high_usd(self) -> Decimal:
        """Upper end of the estimate: what is reserved, and what an approval is asked for."""
        return sum((one.high_usd for one in self.of.values()), Decimal(0))

    @property
    def terms(self) -> dict[str, str]:
        """Per stage the upper end to two digits: what an approval binds to."""
        found: dict[str, Decimal] = defaultdict(Decimal)
        for stage in self.stages:
            found[f"{stage.label}/{stage.name}"] += self.of[stage.key].high_usd
        return {place: str(two_digits_up(usd)) for place, usd in found.items()}

    @property
    def variants(self) -> list[str]:
        """The variants that pending stages belong to."""
        return list(dict.fromkeys(stage.label or SHARED for stage in self.stages))

    def expected_s(self, ref: StageRef) -> float | None:
        """Expected duration of one stage; None where nobody foresaw it."""
        found = self.of.get(ref.key)
        return None if found is None else found.expected_s

    def outcome(self, keys: Sequence[str], place: VariantStage, wall_s: float, charged_usd: Decimal) -> StageOutcome:
        """Stages of one place that ran, beside their estimates; None where one was not foreseen."""
        guesses = [self.of.get(key) for key in keys]
        known = [guess for guess in guesses if guess is not None]
        if len(known) < len(keys):
            return StageOutcome(*place, None, wall_s, None, charged_usd)
        expected_usd = sum((guess.expected_usd for guess in known), Decimal(0))
        return StageOutcome(*place, sum(guess.expected_s for guess in known), wall_s, expected_usd, charged_usd)


def show_outcomes(outcomes: Sequence[StageOutcome]) -> None:
    """Print estimate against actual of the stages that ran."""
    header = ("variant", "stage", "expected", "took", "ratio", "expected USD", "charged USD")
    say()
    table("Estimate against actual", header, [_outcome_row(one) for one in outcomes])


def _range(expected: float, low: float, high: float) -> str:
    return f"{duration(expected)} ({duration(low)} to {duration(high)})"


def _usd_range(expected: Decimal, low: Decimal, high: Decimal) -> str:
    return f"{usd_text(expected)} ({usd_text(low)} to {usd_text(high)})"


def _estimate_row(stage: Stage[object], one: StageEstimate) -> tuple[str, ...]:
    times = _range(one.expected_s, one.low_s, one.high_s)
    usd = _usd_range(one.expected_usd, one.low_usd, one.high_usd)
    return stage.label or SHARED, stage.name, times, usd, one.basis.partition(":")[0]


def _outcome_row(one: StageOutcome) -> tuple[str, ...]:
    expected = "no estimate" if one.expected_s is None else duration(one.expected_s)
    ratio = f"x{one.actual_s / one.expected_s:.2f}" if one.expected_s else ""
    usd = "" if one.expected_usd is None else usd_text(one.expected_usd)
    return one.label or SHARED, one.stage, expected, duration(one.actual_s), ratio, usd, usd_text(one.charged_usd)

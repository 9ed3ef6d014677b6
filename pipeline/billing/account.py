"""The account of one run: everything that the pipeline says to the ledger while it runs.

    account = Account(config, plan, scenario)      # opens no database
    account.forecast.show()                        # charges what died before, then time and cost of each stage
    with account:                                  # approval, reservation; at the end settled, alerts sent
        store = account.store(StageStore(...))     # its stages are charged, reused ones are not

A stage that runs is a charge from its start to its end, however it ends; after a SIGKILL the next run's start finds it.
SQLAlchemy is loaded by the first look into the ledger, never by planning.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from core.console import duration, say
from core.errors import ParsimonyError, UserError
from core.store import StageResult, StageStore
from evals.load.scenario import LoadScenario
from finops.errors import BudgetExceededError, HoldError, LedgerUnavailableError
from finops.ledger.rates import rate_of
from finops.money import round_decimals, usd_text
from pipeline.billing.estimate import Forecast, Place, show_outcomes
from pipeline.billing.terms import ledger_url, load_usage, resource_of
from pipeline.config import RunConfig
from pipeline.plan.tags import charge_tags
from pipeline.types import Plan, StageOutcome

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from finops.controls.budgets import Hold
    from finops.ledger.charges import Charge
    from finops.ledger.ledger import Ledger
    from finops.ledger.meter import Meter
    from pipeline.record.registry import Subject

log = logging.getLogger(__name__)
KEEP_EVERY_S = 10.0
"""How often a hold's life is prolonged and the spend is looked at."""
AHEAD_S = 15.0
"""A hold is extended when the machine's next seconds would pass it."""
EXTENSION, EXTENSION_S = Decimal("0.25"), 60
"""What is asked for then: this share of what is held, or so many seconds of the machine, whichever is more."""


@dataclass(frozen=True)
class ChargedStore(StageStore):
    """A stage store whose stages are charged while they are made. A stage inside another one is part of it."""

    account: Account = field(kw_only=True)
    label: str = field(default="", kw_only=True)
    """The variant; empty for what all variants need."""

    def run(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        make: Callable[[Path], Mapping[str, Any]],
        *,
        resumable: bool = False,
    ) -> StageResult:
        """`StageStore.run`. The charge ends after the result is stored: a ledger that fails then costs no work."""
        meters: list[Meter | None] = []
        with ExitStack() as charge:

            def charged(folder: Path) -> Mapping[str, Any]:
                meters.append(charge.enter_context(self.account.charge(stage, self.label, self.key(stage, inputs))))
                return make(folder)

            found = super().run(stage, inputs, charged, resumable=resumable)
            self.account.finished(found, self.label, meters[0] if meters else None)
        return found


class Account:
    """See the module. One run's; not shared with another process."""

    def __init__(self, config: RunConfig, plan: Plan, scenario: LoadScenario) -> None:
        """Raises `ConfigError` for a purchase option that cannot be charged."""
        self._config, self._plan = config, plan
        self.tags = charge_tags(config)
        self.rate, self.resource = rate_of(plan.price), resource_of(plan.price, plan.machine, socket.gethostname())
        self.run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{plan.plan_hash[:8]}-{uuid.uuid4().hex[:6]}"
        self.forecast = Forecast(config, plan, scenario, self._opened)
        self._usd_per_s = plan.price.usd_per_hour / 3600
        self._ledger: Ledger | None = None
        self._hold: Hold | None = None
        self._held_usd = Decimal(0)
        self._meter: Meter | None = None
        self._meter_started = self._last_tick = 0.0
        self._charges: dict[Place, list[Charge]] = defaultdict(list)
        self._wall_s: dict[Place, float] = {}
        self._failure: UserError | None = None
        self._stop = threading.Event()
        self._keeper: threading.Thread | None = None

    def _opened(self) -> Ledger:
        """The ledger; the first look charges what died before."""
        if self._ledger is None:
            from finops.ledger.ledger import Ledger

            self._ledger = Ledger(ledger_url(self._config), create=not self._config.dry_run)
            if not self._config.dry_run:
                _say_recovered(self._ledger.recover())
        return self._ledger

    # The run ---------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Have the run approved where it must be, and reserve its estimate's upper end where a budget covers it.

        Raises:
            ApprovalRequiredError: it waits for a person (exit code 3).
            BudgetExceededError: it would pass a budget (exit code 4).
            LedgerUnavailableError: nothing is spent then.

        """
        try:
            self._require_approval()
            self._reserve()
        except ParsimonyError:
            self._close()
            raise
        return self

    def _require_approval(self) -> None:
        threshold = self._config.finops.approval.threshold_usd
        if threshold is None or not self.forecast.stages:
            return
        from finops.controls.approvals import Approvals, subject_hash

        subject = subject_hash(
            {"plan": self._plan.plan_hash, "tags": self.tags}, self.forecast.terms, self.rate.price_version
        )
        variants = " and ".join(dict.fromkeys(work.label for work in self.forecast.works))
        Approvals(self._opened()).require(
            subject=subject,
            estimate_usd=self.forecast.high_usd,
            threshold_usd=Decimal(str(threshold)),
            summary=f"{variants} of {self._config.model.name} on {self.resource.accelerator}",
        )

    def _reserve(self) -> None:
        from finops.controls.budgets import Budgets
        from finops.ledger.spend import SCOPES

        budgets = Budgets(self._opened())
        covering = [
            one for one in budgets.status() if all(getattr(one, key) in (None, self.tags.get(key)) for key in SCOPES)
        ]
        if not covering:
            return
        self._held_usd = round_decimals(self.forecast.high_usd, 6)
        self._hold = budgets.reserve(self.run_id, self._held_usd, self.tags)
        self._keeper = threading.Thread(target=self._keep, name="finops-hold", daemon=True)
        self._keeper.start()

    def store(self, store: StageStore) -> ChargedStore:
        """The store with its stages charged to this account."""
        return ChargedStore(store.root, store.on_event, account=self)

    @contextmanager
    def charge(self, stage: str, label: str, key: str) -> Iterator[Meter | None]:
        """Charge the machine's time while the block runs; None where a stage around it is charged already.

        Raises:
            LedgerUnavailableError, HoldError, BudgetExceededError, ApprovalRequiredError: the stage must not start.

        """
        if self._meter is not None:
            yield None
            return
        from finops.ledger.meter import Meter

        self._check()
        self._allow_unforeseen((label, stage))
        about = {"variant": label} if label else {}
        tags = {**self._tags_of(stage), **about, "stage_key": key}
        metered = Meter(
            self._opened(),
            run_id=self.run_id,
            stage=stage,
            resource=self.resource,
            rate=self.rate,
            tags=tags,
            hold=self._hold,
        )
        with metered as meter:
            self._meter = meter
            self._meter_started = self._last_tick = time.monotonic()
            try:
                yield meter
            finally:
                self._meter = None
        self._charges[label, stage] += meter.charges

    def _tags_of(self, stage: str) -> dict[str, str]:
        """The run's cost tags. Training a student is training, also in a run whose purpose is evaluation."""
        allowed = self._config.finops.tags.allowed.get("workload_type", [])
        if (
            stage == "distill"
            and self.tags.get("workload_type") == "evaluation"
            and (not allowed or "training" in allowed)
        ):
            return {**self.tags, "workload_type": "training"}
        return self.tags

    def _allow_unforeseen(self, place: Place) -> None:
        """A stage that the plan took for done runs after all: it needs room and approval as if it had been foreseen."""
        work = self.forecast.work(place)
        if work is None or place in self.forecast.stages:
            return
        found = self.forecast.add(work)
        if self._hold is not None:
            self._extend(found.high_usd)
        self._require_approval()

    def finished(self, found: StageResult, label: str, meter: Meter | None) -> None:
        """A stage's result is stored: note what it took and yielded, and that the same settings find it again."""
        place = (label, found.stage)
        work = self.forecast.work(place)
        if work is not None:
            self.forecast.found_again_as(work, found.key)
        if found.reused or meter is None:
            return
        self._wall_s[place] = self._wall_s.get(place, 0.0) + found.wall_s
        if found.stage == "load":
            meter.usage(**load_usage(found.result))
        if work is not None:
            from finops.reports.estimates import record_stage

            try:
                record_stage(self._opened(), self.run_id, self.forecast.stage_work(work), found.wall_s)
            except LedgerUnavailableError as error:
                log.warning("%s", error)  # the charge itself says it again, and stays open until the next start

    def tick(self) -> None:
        """The work so far is safe. Call it as a stage goes on.

        Raises:
            LedgerUnavailableError, HoldError, BudgetExceededError: the stage must stop.

        """
        self._check()
        if self._meter is not None and time.monotonic() - self._last_tick >= KEEP_EVERY_S:
            self._last_tick = time.monotonic()
            self._meter.checkpoint()

    def ticking(self, advance: Callable[[int, int], None]) -> Callable[[int, int], None]:
        """A progress callback that also says that the work so far is safe."""

        def both(done: int, total: int) -> None:
            advance(done, total)
            self.tick()

        return both

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _keep(self) -> None:
        """In a thread: keep the hold alive between stages too, and ask for more before it is used up."""
        assert self._hold is not None
        while not self._stop.wait(KEEP_EVERY_S):
            try:
                self._hold.heartbeat()
                self.extend_if_needed()
            except LedgerUnavailableError as error:
                log.warning("%s", error)  # the meter stops the stage where this lasts
            except (HoldError, BudgetExceededError) as error:
                self._failure = self._failure or error

    def extend_if_needed(self) -> None:
        """Reserve more where a running stage will soon pass what is held. Raises `BudgetExceededError` on a refusal."""
        if self._hold is None or self._meter is None:
            return
        running_s = time.monotonic() - self._meter_started
        soon = self.charged_usd + self._usd_per_s * Decimal(repr(running_s + AHEAD_S))
        if soon > self._held_usd:
            self._extend(max(self._held_usd * EXTENSION, self._usd_per_s * Decimal(EXTENSION_S), soon - self._held_usd))

    def _extend(self, extra_usd: Decimal) -> None:
        assert self._hold is not None
        extra = round_decimals(extra_usd, 6)
        self._hold.extend(extra)
        self._held_usd += extra

    # After the run ---------------------------------------------------------------------------------------------------

    @property
    def charged_usd(self) -> Decimal:
        """Effective cost of the stages that have ended."""
        charges = [charge for found in list(self._charges.values()) for charge in found]
        return sum((charge.effective_usd for charge in charges), Decimal(0))

    def outcomes(self, label: str | None = None) -> list[StageOutcome]:
        """The stages that ran, of one variant or of all: estimate against actual."""
        return [
            self.forecast.outcome(place, wall_s, sum((one.effective_usd for one in self._charges[place]), Decimal(0)))
            for place, wall_s in self._wall_s.items()
            if label in (None, place[0])
        ]

    def deliver_alerts(self, set_tag: Callable[[str, str], None]) -> None:
        """Send the budget alerts that are due; `set_tag(name, value)` puts them on the MLflow run."""
        if self._hold is None:
            return
        from finops.controls.alerts import CallbackChannel, dispatcher_from_environment

        channel = CallbackChannel("mlflow", lambda alert: set_tag("budget_alert", alert.text))
        dispatcher_from_environment(self._opened(), channel).deliver()

    def promoted(self, client: MlflowClient, before: ModelVersion | None) -> None:
        """Note a promotion with both models' prices per token; nothing where the champion is still `before`."""
        from pipeline.billing.promotions import note_promotion

        note_promotion(self._opened(), client, self._config, before, self.tags.get("team", ""))

    def approver(self, subject: Subject) -> str | None:
        """Who approved a promotion (`promote.require_approval`); a request is filed where nobody was asked yet.

        Raises:
            PromotionRefusedError: it waits, was rejected, or was approved by the one who asks.

        """
        from pipeline.billing.approvals import approver_of

        return approver_of(subject, self._config, self._opened(), self.charged_usd)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Settle the hold (release it after a failure), keep the estimates, show what was spent."""
        try:
            if kind is None and self._wall_s:
                self.forecast.save(self._opened(), self.run_id, list(self._wall_s))
                show_outcomes(self.outcomes())
                owner = self.tags.get("team", "nobody")
                say(f"Charged  {usd_text(self.charged_usd)} USD to {owner} (run {self.run_id})")
            self._end_hold(failed=kind is not None)
        except UserError as failure:
            sys.stderr.write(f"the run's account could not be closed: {failure}\n")
        finally:
            self._close()

    def _end_hold(self, *, failed: bool) -> None:
        if self._hold is None:
            return
        self._stop.set()
        if self._keeper is not None:
            self._keeper.join()
        if failed:
            self._hold.release()
        else:
            self._hold.settle()
        from finops.controls.alerts import dispatcher_from_environment

        dispatcher_from_environment(self._opened()).deliver()

    def _close(self) -> None:
        self._stop.set()
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None


def _say_recovered(charges: list[Charge]) -> None:
    """What earlier runs left open when they were killed, charged now."""
    for run_id, stage in dict.fromkeys((charge.run_id, charge.stage) for charge in charges):
        mine = [charge for charge in charges if (charge.run_id, charge.stage) == (run_id, stage)]
        seconds = sum(charge.end_us - charge.start_us for charge in mine) / 1e6
        usd = sum((charge.effective_usd for charge in mine), Decimal(0))
        lost = sum(charge.end_us - charge.start_us for charge in mine if charge.work == "lost") / 1e6
        say(f"Charged  {stage} of run {run_id}, which was killed: {duration(seconds)}, {usd_text(usd)} USD "
            f"({duration(lost)} of it lost work)")  # fmt: skip

"""The account of one run: everything that a run says to the ledger.

    billing = Billing(plan)             # opens no database
    billing.estimate()                  # charges what died before, then time and cost of each pending stage
    with billing:                       # approval, reservation; at the end settled, alerts sent
        store = StageStore(root, hooks=(billing,))      # stages that are made are charged, reused ones are not

A stage that is made is a charge from its start to its end, however it ends; after a SIGKILL the next run's start finds
it.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Self

from core.console import duration, say
from core.errors import ParsimonyError, UserError
from core.store import StageHook, StageRef, StageResult
from finops.controls.alerts import CallbackChannel, dispatcher_from_environment
from finops.controls.approvals import Approvals, subject_hash
from finops.controls.budgets import Budgets, Reservation
from finops.errors import BudgetExceededError, LedgerUnavailableError, ReservationError
from finops.ledger.charges import Charge
from finops.ledger.ledger import Ledger
from finops.ledger.meter import Meter
from finops.ledger.rates import rate_of
from finops.ledger.spend import SCOPES
from finops.money import round_decimals, usd_text
from finops.reports.estimates import RunEstimate, record_stage, save_estimate
from finops.reports.work import StageEstimate, added_up
from pipeline.billing.approvals import approver_of
from pipeline.billing.estimate import Estimates, VariantStage, show_outcomes
from pipeline.billing.promotions import note_promotion
from pipeline.billing.terms import ledger_url, load_usage, resource_of
from pipeline.plan.resolve import RunPlan
from pipeline.plan.tags import charge_tags
from pipeline.record.registry import Subject
from pipeline.stages.graph import WORK_SHARE, Stage
from pipeline.types import Spend, StageOutcome

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)
KEEP_EVERY_S = 10.0
"""How often a reservation's life is prolonged and the spend is looked at."""
AHEAD_S = 15.0
"""A reservation is extended when the machine's next seconds would pass it."""
EXTENSION, EXTENSION_S = Decimal("0.25"), 60
"""What is asked for then: this share of what is reserved, or so many seconds of the machine, whichever is more."""


class Billing(StageHook):
    """See the module. One run's; not shared with another process."""

    def __init__(self, plan: RunPlan, stages: Sequence[Stage[object]] | None = None) -> None:
        """`stages` are those that will run; None: the plan's pending ones.

        Raises:
            ConfigError: the purchase option cannot be charged.

        """
        choices, config = plan.choices, plan.config
        self._config, self._plan = config, plan
        self._ledger_url = ledger_url(config.finops.ledger, config.tracking)
        self.tags = charge_tags(config)
        self.rate = rate_of(choices.price)
        self.resource = resource_of(choices.price, choices.machine, socket.gethostname())
        self.run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{plan.digest[:8]}-{uuid.uuid4().hex[:6]}"
        pending = plan.pending if stages is None else stages
        self._stages = {stage.key: stage for stage in pending}
        self.estimates = Estimates(
            pending, choices.price, choices.machine, self._ledger_url, self._opened, dry_run=config.dry_run
        )
        self._usd_per_s = choices.price.usd_per_hour / 3600
        self._ledger: Ledger | None = None
        self._hold: Reservation | None = None
        self._held_usd = Decimal(0)
        self._meter: Meter | None = None
        self._meter_started = self._last_tick = 0.0
        self._charges: dict[VariantStage, list[Charge]] = defaultdict(list)
        self._wall_s: dict[VariantStage, float] = {}
        self._keys: dict[VariantStage, list[str]] = defaultdict(list)
        self._failure: UserError | None = None
        self._stop = threading.Event()
        self._keeper: threading.Thread | None = None

    @property
    def ledger_url(self) -> str:
        """Where the ledger is."""
        return self._ledger_url

    def quote(self, stage: Stage[object], num_tokens: int) -> StageEstimate:
        """What a stage would take and cost for so many tokens."""
        return self.estimates.quote(stage, num_tokens)

    def estimate(self) -> None:
        """Estimate every pending stage, and print what it will take.

        Raises:
            LedgerUnavailableError: the ledger cannot be used, and this is no dry run.

        """
        self.estimates.make()
        self.estimates.show()

    def _opened(self) -> Ledger:
        """The ledger; the first use charges what died before."""
        if self._ledger is None:
            self._ledger = Ledger(self._ledger_url, create=not self._config.dry_run)
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
        if threshold is None or not self.estimates.of:
            return
        subject = subject_hash(
            {"plan": self._plan.digest, "tags": self.tags}, self.estimates.terms, self.rate.price_version
        )
        variants = " and ".join(self.estimates.variants)
        Approvals(self._opened()).require(
            subject=subject,
            estimate_usd=self.estimates.high_usd,
            threshold_usd=Decimal(str(threshold)),
            summary=f"{variants} of {self._config.model.name} on {self.resource.accelerator}",
        )

    def _reserve(self) -> None:
        budgets = Budgets(self._opened())
        covering = [
            one for one in budgets.status() if all(getattr(one, key) in (None, self.tags.get(key)) for key in SCOPES)
        ]
        if not covering:
            return
        self._held_usd = round_decimals(self.estimates.high_usd, 6)
        self._hold = budgets.reserve(self.run_id, self._held_usd, self.tags)
        self._keeper = threading.Thread(target=self._keep, name="finops-hold", daemon=True)
        self._keeper.start()

    # What the store tells ----------------------------------------------------------------------------------------

    def started(self, ref: StageRef) -> None:
        """Charge the machine's time from now on.

        Raises:
            LedgerUnavailableError, ReservationError, BudgetExceededError: the stage must not start.

        """
        self._check()
        about = {"variant": ref.label} if ref.label else {}
        tags = {**self._tags_of(ref.stage), **about, "stage_key": ref.key}
        meter = Meter(
            self._opened(),
            run_id=self.run_id,
            stage=ref.stage,
            resource=self.resource,
            rate=self.rate,
            tags=tags,
            reservation=self._hold,
        )
        self._meter = meter.__enter__()
        self._meter_started = self._last_tick = time.monotonic()

    def progressed(self, ref: StageRef, done: int, total: int) -> None:
        """The work so far is safe: only what follows can be lost.

        Raises:
            LedgerUnavailableError, ReservationError, BudgetExceededError: the stage must stop.

        """
        self._check()
        if self._meter is not None and time.monotonic() - self._last_tick >= KEEP_EVERY_S:
            self._last_tick = time.monotonic()
            self._meter.checkpoint()

    def finished(self, ref: StageRef, found: StageResult) -> None:
        """The result is stored: end the charge, note what the stage took and yielded."""
        place, meter = (ref.label, ref.stage), self._meter
        assert meter is not None, "a stage ends that did not start"
        if ref.stage == "load":
            meter.usage(**load_usage(found.result))
        self._end_meter(place, None)
        self._wall_s[place] = self._wall_s.get(place, 0.0) + found.wall_s
        self._keys[place].append(ref.key)
        stage = self._stages.get(ref.key)
        if stage is not None:
            status = "completed" if is_representative(found) else "partial"
            try:
                work = self.estimates.work_of(stage)
                record_stage(self._opened(), self.run_id, work, found.wall_s, status=status)
            except LedgerUnavailableError as error:
                log.warning("%s", error)  # the charge itself says it again, and stays open until the next start

    def failed(self, ref: StageRef, error: BaseException) -> None:
        """The work since the last progress is lost, and charged all the same."""
        self._end_meter((ref.label, ref.stage), error)

    def _end_meter(self, place: VariantStage, error: BaseException | None) -> None:
        meter, self._meter = self._meter, None
        if meter is None:
            return
        try:
            if error is None:
                meter.__exit__(None, None, None)
            else:
                meter.__exit__(type(error), error, error.__traceback__)
        finally:
            self._charges[place] += meter.charges

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
            except (ReservationError, BudgetExceededError) as error:
                # The run's own thread raises it, in `_check`.
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
        # A copy: the keeper's thread reads this while stages end.
        charges = [charge for found in list(self._charges.values()) for charge in found]
        return sum((charge.effective_usd for charge in charges), Decimal(0))

    def outcomes(self, label: str | None = None) -> list[StageOutcome]:
        """The stages that ran, of one variant or of all: estimate against actual."""
        return [
            self.estimates.outcome(
                self._keys[place], place, wall_s, sum((one.effective_usd for one in self._charges[place]), Decimal(0))
            )
            for place, wall_s in self._wall_s.items()
            if label in (None, place[0])
        ]

    def summary(self, label: str) -> Spend:
        """What a variant's record says of this account."""
        return Spend(self.run_id, self.tags, self.outcomes(label))

    def deliver_alerts(self, set_tag: Callable[[str, str], None]) -> None:
        """Send the budget alerts that are due; `set_tag(name, value)` puts them on the MLflow run."""
        if self._hold is None:
            return
        channel = CallbackChannel("mlflow", lambda alert: set_tag("budget_alert", alert.text))
        dispatcher_from_environment(self._opened(), channel).deliver()

    def promoted(self, client: MlflowClient, before: ModelVersion | None) -> None:
        """Note a promotion with both models' prices per token; nothing where the champion is still `before`."""
        name, alias = self._config.model.name, self._config.promote.alias
        note_promotion(self._opened(), client, before, name=name, alias=alias, team=self.tags.get("team", ""))

    def approver(self, subject: Subject) -> str | None:
        """Who approved a promotion (`promote.require_approval`); a request is filed where nobody was asked yet.

        Raises:
            PromotionRefusedError: it waits, was rejected, or was approved by the one who asks.

        """
        return approver_of(subject, self._opened(), self.charged_usd)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Settle the hold (release it after a failure), keep the estimates, show what was spent."""
        try:
            if kind is None and self._wall_s:
                self._keep_estimates()
                show_outcomes(self.outcomes())
                owner = self.tags.get("team", "nobody")
                say(f"Charged  {usd_text(self.charged_usd)} USD to {owner} (run {self.run_id})")
            self._end_hold(failed=kind is not None)
        except UserError as failure:
            sys.stderr.write(f"the run's account could not be closed: {failure}\n")
        finally:
            self._close()

    def _keep_estimates(self) -> None:
        """Keep the estimates of the stages that ran, variants added up, to hold them against what was charged."""
        by_stage: dict[str, list[StageEstimate]] = defaultdict(list)
        for (_, stage), keys in self._keys.items():
            by_stage[stage] += [self.estimates.of[key] for key in keys if key in self.estimates.of]
        added = tuple(added_up(parts) for parts in by_stage.values() if parts)
        save_estimate(self._opened(), self.run_id, RunEstimate(added))

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
        dispatcher_from_environment(self._opened()).deliver()

    def _close(self) -> None:
        self._stop.set()
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None


def is_representative(found: StageResult) -> bool:
    """Whether a stage did all of its work itself, so that later estimates may rest on its duration."""
    return bool(found.result.get(WORK_SHARE, 1.0) == 1.0)


def _say_recovered(charges: list[Charge]) -> None:
    """What earlier runs left open when they were killed, charged now."""
    for run_id, stage in dict.fromkeys((charge.run_id, charge.stage) for charge in charges):
        mine = [charge for charge in charges if (charge.run_id, charge.stage) == (run_id, stage)]
        seconds = sum(charge.end_us - charge.start_us for charge in mine) / 1e6
        usd = sum((charge.effective_usd for charge in mine), Decimal(0))
        lost = sum(charge.end_us - charge.start_us for charge in mine if charge.work == "lost") / 1e6
        say(f"Charged  {stage} of run {run_id}, which was killed: {duration(seconds)}, {usd_text(usd)} USD "
            f"({duration(lost)} of it lost work)")  # fmt: skip

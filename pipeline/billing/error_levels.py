"""The error level of each candidate: counted in the ledger, before its first answer."""

from __future__ import annotations

from contextlib import closing
from functools import partial

from evals.decide.declared import Attempt, check_rule, declared_rule
from evals.gate.levels import attempt_level
from finops.controls.attempts import Attempts
from finops.ledger.ledger import Ledger
from pipeline.plan.resolve import RunPlan
from pipeline.stages.graph import Effects


class CountedLevels:
    """Counts candidates in the ledger at a URL. It may be used from several processes at once."""

    def __init__(self, ledger_url: str) -> None:
        self._ledger_url = ledger_url

    def __call__(self, attempt: Attempt) -> float:
        """The level at which a candidate is tested. It is counted with the first call, and keeps its slot.

        Raises:
            ConfigError: the rule must not follow those that were declared before it.
            LedgerUnavailableError: nothing is asked then, for nobody would know which candidate it is.

        """
        rule = attempt.rule
        with closing(Ledger(self._ledger_url)) as ledger:
            slot = Attempts(ledger).claim(
                attempt.family, rule.tasks, rule.to_json(), attempt.digest, attempt.batch_size,
                partial(check_rule, rule=rule),
            )  # fmt: skip
        return attempt_level(rule.alpha, slot.batch, slot.batch_size)

    def check(self, plan: RunPlan, effects: Effects) -> None:
        """Check a run's rule before anything is made or asked: it needs the baseline's weights alone.

        Raises:
            ConfigError: the rule must not follow those that were declared before it.

        """
        config, baseline = plan.config, plan.variants.all[0].quality
        with closing(Ledger(self._ledger_url)) as ledger:
            declared = Attempts(ledger).declared(baseline.family(effects))
        check_rule(declared, declared_rule(config.gate, config.suite.tasks))

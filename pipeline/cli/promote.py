"""Apply a decision to the model registry, decide again over recorded runs, or go back to the version before.

    parsimony promote model=smollm2-135m-q4_1                            decide again, and promote the winner
    parsimony promote model=smollm2-135m-q4_1 gate.delta_points=3        under another gate
    parsimony promote model=smollm2-135m-q4_1 promote.enabled=false      only say what would be done
    parsimony promote model=smollm2-135m-q4_1 --json                     one JSON object on standard output
    parsimony rollback model=smollm2-135m-q4_1                           make the version before the champion again

A promoted candidate becomes a version of the registered model that has the model's name. Its weights are copied into
the run's artifacts, so that a cleared cache does not take them away, beside the decision's record and page. The alias
`champion` points to it; the version that it replaces keeps `previous`. An alias moves in one transaction of the
registry, last of all: a promotion that is cut off leaves the old champion in place.

Refused: a checkpoint that is not the one that was measured, evidence older than `gate.max_age_days`, and, under
`promote.require_approval`, what nobody has approved.
"""

from __future__ import annotations

import argparse

from core import console
from core.console import say
from pipeline.billing.error_levels import CountedLevels
from pipeline.billing.terms import ledger_url
from pipeline.cli.options import config_of, parser
from pipeline.config import RunConfig
from pipeline.promote import exit_code, promote_winner
from pipeline.record.candidates import RecordedCandidates, recorded_candidates
from pipeline.record.registry import rollback
from pipeline.record.store import Recorder
from pipeline.report.json_output import decision_json, rollback_json
from pipeline.report.text import action_text


def _options(verb: str, arguments: list[str]) -> argparse.Namespace:
    commands = parser(verb, __doc__)
    commands.add_argument(
        "--json", action="store_true", help="one JSON object on standard output, the rest on standard error"
    )
    if verb == "promote":
        commands.add_argument("--rollback", action="store_true", help="as the verb rollback")
    options = commands.parse(arguments)
    if options.json:
        console.to_stderr()
    return options


def main(arguments: list[str]) -> int:
    """Decide again and promote the cheapest candidate that passes; or go back."""
    options = _options("promote", arguments)
    config = config_of(options)
    if options.rollback:
        return _go_back(config)
    recorder = Recorder(config.tracking)
    levels = CountedLevels(ledger_url(config.finops.ledger, config.tracking))
    found = recorded_candidates(recorder, config.model.name, config.gate, config.seed, levels)
    show(found)
    done = promote_winner(found, config, recorder)
    say(done)
    winner = found.ranking.winner
    decision = found.ranking.decisions[0 if winner is None else winner]  # without a winner: the newest candidate's
    console.result(decision_json(decision, model=config.model.name, registry=done))
    return exit_code(decision) if config.fail_on_hold else 0


def show(found: RecordedCandidates) -> None:
    """The decisions on all candidates, with their reasons."""
    for decision in found.ranking.decisions:
        say(f"{decision.variant}: {action_text(decision.action)}")
        for reason in decision.reasons:
            say(f"  {reason}")
    for loss in found.ranking.losses:
        for reason in loss.beaten_by:
            say(f"{loss.variant} is not promoted: {reason}")
    for note in found.ranking.notes:
        say(f"note: {note}")
    if found.num_others:
        say(f"not compared: {found.num_others} recorded candidates on other suites, machines or prices")


def back(arguments: list[str]) -> int:
    """Make the version before the champion the champion again."""
    return _go_back(config_of(_options("rollback", arguments)))


def _go_back(config: RunConfig) -> int:
    done = rollback(Recorder(config.tracking), config.model.name, config.promote.alias)
    say(done)
    console.result(rollback_json(config.model.name, done))
    return 0

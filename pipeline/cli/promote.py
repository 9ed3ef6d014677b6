"""Apply a decision to the model registry, decide again over recorded runs, or go back to the version before.

    python -m pipeline.cli.promote model=smollm2-135m-q4_1            decide again over the recorded runs, and promote
    python -m pipeline.cli.promote model=... gate.delta_points=3      under another gate
    python -m pipeline.cli.promote model=... promote.enabled=false    only say what would be done
    python -m pipeline.cli.promote model=... --rollback               make the version before the champion again

A promoted candidate becomes a version of the registered model that has the model's name. Its weights are copied into
the run's artifacts, so that a cleared cache does not take them away, beside the decision's record and page. The alias
`champion` points to it; the version that it replaces keeps `previous`. An alias moves in one transaction of the
registry, last of all: a promotion that is cut off leaves the old champion in place.

Refused: a checkpoint that is not the one that was measured, evidence older than `gate.max_age_days`, and, under
`promote.require_approval`, what nobody has approved.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pipeline.cli.app import run_command
from pipeline.promote import promote_winner
from pipeline.record.candidates import recorded_candidates
from pipeline.record.registry import rollback

if TYPE_CHECKING:
    pass


def main(arguments: list[str]) -> int:
    """Decide again and promote the cheapest candidate that passes; or go back."""
    from core.console import say
    from pipeline.cli.app import command_config
    from pipeline.record.store import Recorder

    config = command_config([one for one in arguments if one != "--rollback"], __doc__)
    recorder = Recorder(config.tracking)
    if "--rollback" in arguments:
        say(rollback(recorder, config.model.name, config.promote.alias))
        return 0
    found = recorded_candidates(config, recorder)
    for decision in found.ranking.decisions:
        say(f"{decision.variant}: {decision.action}")
        for reason in decision.reasons:
            say(f"  {reason}")
    for loss in found.ranking.losses:
        for beaten_by in loss.beaten_by:
            say(f"{loss.variant} was beaten by {beaten_by}")
    for note in found.ranking.notes:
        say(f"note: {note}")
    if found.num_others:
        say(f"not compared: {found.num_others} recorded candidates on other suites, machines or prices")
    say(promote_winner(found, config, recorder))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))

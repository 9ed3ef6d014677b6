"""`parsimony noise` on the real model: two real paths, what is charged, and what a second call finds."""

from __future__ import annotations

import json

import pytest

from finops.ledger.ledger import Ledger
from tests.integration.conftest import Workplace

pytestmark = [pytest.mark.integration, pytest.mark.slow]  # two servers; units cover the rest
ARGUMENTS = ("model=smollm2-135m-q4_1", "quant=none", "suite.tasks=[arc_easy]", "noise.max_items=4", "--json")


def test_a_checkpoint_is_measured_against_itself_once(workplace: Workplace) -> None:
    done = workplace.run(*ARGUMENTS, verb="noise")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    one = found["variants"]["none"]["arc_easy"]
    assert (one["num_items"], one["num_unscored"]) == (4, 0)
    # Another path rounds otherwise, and float32's rounding moves no log-likelihood by a tenth of a nat.
    assert 0 < one["rms_nats"] <= one["max_nats"] < 0.1
    assert 0 < one["rms_probability"] < 0.1
    assert "The noise floor of smollm2-135m-q4_1" in done.stderr
    ledger = Ledger(f"sqlite:///{workplace.tracking}/finops.db")
    stages = [charge.stage for charge in ledger.charges()]
    ledger.close()
    assert stages.count("noise") == 1

    again = workplace.run(*ARGUMENTS, verb="noise")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == found
    assert "every stage is in the store: nothing to spend" in again.stderr

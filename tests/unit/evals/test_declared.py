"""The declared rule: what may follow what, and what makes another candidate."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from evals.config import GateConfig
from evals.decide.declared import Attempt, DeclaredRule, check_rule, declared_rule, family_of, level_of_one

SUITE = ["piqa", "arc_easy"]
RULE = declared_rule(GateConfig(), SUITE)
TASKS = st.sets(st.sampled_from(["a", "b", "c", "d"]), min_size=1)


def rule(tasks: set[str], alpha: float = 0.05) -> DeclaredRule:
    return declared_rule(GateConfig(alpha=alpha), sorted(tasks))


def test_the_rule_has_the_margins_of_the_tasks_that_decide() -> None:
    found = declared_rule(GateConfig(delta_points=2, task_delta_points={"piqa": 3}, tasks=["piqa"]), SUITE)
    assert (found.tasks, found.delta_points) == (("piqa",), {"piqa": 3})
    assert RULE.tasks == ("arc_easy", "piqa")
    assert declared_rule(GateConfig(guard_delta_points=7), SUITE).guard_points == 7
    assert declared_rule(GateConfig(score="accuracy", guard_delta_points=7), SUITE).guard_points is None


def test_fewer_tasks_after_the_answers_are_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"gate\.tasks: piqa would decide alone") as refused:
        check_rule([RULE.to_json()], declared_rule(GateConfig(tasks=["piqa"]), SUITE))
    assert "suite.tasks=[arc_easy,piqa] gate.tasks=null" in str(refused.value)


def test_a_larger_error_level_is_refused_and_a_smaller_one_is_not() -> None:
    with pytest.raises(ConfigError, match=r"gate\.alpha=0\.1: [^\n]*0\.05[^\n]*\n  -> gate\.alpha=0\.05"):
        check_rule([RULE.to_json()], replace(RULE, alpha=0.1))
    check_rule([RULE.to_json()], replace(RULE, alpha=0.01))
    with pytest.raises(ConfigError, match=r"gate\.alpha=0\.05"):
        check_rule([RULE.to_json(), replace(RULE, alpha=0.01).to_json()], RULE)


def test_another_margin_may_follow() -> None:
    wider = replace(RULE, delta_points={"arc_easy": 5.0, "piqa": 5.0})
    check_rule([RULE.to_json()], wider)
    check_rule([RULE.to_json(), wider.to_json()], RULE)  # and back again
    assert wider.to_json() != RULE.to_json(), "the ledger notes it"


@given(st.lists(TASKS, max_size=4), TASKS)
def test_exactly_the_proper_subsets_of_what_was_declared_are_refused(before: list[set[str]], now: set[str]) -> None:
    declared = [rule(tasks).to_json() for tasks in before]
    if any(now < tasks for tasks in before):
        with pytest.raises(ConfigError, match=r"gate\.tasks"):
            check_rule(declared, rule(now))
    else:
        check_rule(declared, rule(now))


def test_a_margin_makes_no_other_try_but_a_score_and_an_order_do() -> None:
    one = Attempt("family", "candidate", RULE, 1)
    assert replace(one, rule=replace(RULE, delta_points={"piqa": 9.0})).digest == one.digest
    others = [replace(one, rule=replace(RULE, score="accuracy")), replace(one, rule=replace(RULE, order="uniform"))]
    others.append(replace(one, candidate="another"))
    assert len({other.digest for other in [one, *others]}) == 4


def test_a_family_is_the_baseline_and_the_way_of_asking() -> None:
    asked = ("baseline", "items", None, False)
    families = {family_of(*asked), family_of("other", *asked[1:]), family_of("baseline", "items", 5, False)}
    assert len(families) == 3
    assert family_of(*asked) == family_of(*asked)


def test_the_first_candidate_has_its_share_of_the_level() -> None:
    assert level_of_one(Attempt("f", "c", RULE, 1)) == pytest.approx(0.0304, abs=1e-4)
    assert level_of_one(Attempt("f", "c", RULE, 4)) == pytest.approx(0.0304 / 4, abs=1e-4)

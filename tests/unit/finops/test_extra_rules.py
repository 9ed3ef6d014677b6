"""The rules that focus-validator does not see broken: read from a model of its form, asked of rows."""

from __future__ import annotations

import pytest

from core.files import write_json
from finops.focus.extra_rules import MODEL, blind_rules, find_breaches

NOT_A_CORRECTION = {"CheckFunction": "CheckNotValue", "ColumnName": "ChargeClass", "Value": "Correction"}


def value(column, wanted, kind="CheckValue"):
    return {"CheckFunction": kind, "ColumnName": column, "Value": wanted}


def rule(requirement, condition=None, type_="Static"):
    says = {"MustSatisfy": "as said", "Requirement": requirement, "Condition": condition or {}}
    return {"Type": type_, "ValidationCriteria": says}


def product(first, second, result):
    names = {"ColumnAName": first, "ColumnBName": second, "ResultColumnName": result}
    return {"CheckFunction": "ColumnByColumnEqualsColumnValue", **names}


@pytest.fixture
def rules(tmp_path):
    choice = {"CheckFunction": "OR", "Items": [value("Kind", "Usage"), value("Kind", "Tax")]}
    statuses = {"CheckFunction": "OR", "Items": [value("Status", "Active")]}
    parent = {"CheckFunction": "AND", "Items": [{"CheckFunction": "CheckModelRule", "ModelRuleId": "Price-4"}]}
    model = {
        "Kind": {
            "Kind-1": rule(choice),
            "Kind-2": rule(value("Kind", None, "CheckNotValue")),  # the validator sees this one broken
            "Kind-3": rule(choice, type_="Dynamic"),
        },
        "Price": {
            "Price-0": rule(parent, value("Kind", "Usage")),
            "Price-4": rule(value("Price", None, "CheckNotValue"), NOT_A_CORRECTION),
            "Price-5": rule(product("Price", "Quantity", "Cost"), NOT_A_CORRECTION),
        },
        "Status": {"CommitmentDiscountStatus-C-005-M": rule(statuses)},
    }
    path = tmp_path / MODEL
    path.parent.mkdir(parents=True)
    write_json(path, {"ConformanceDatasets": {"Rows": model}})
    return blind_rules(tmp_path)


GOOD = {"Kind": "Usage", "ChargeClass": "", "Price": "2.0", "Quantity": "3.0", "Cost": "6.0", "Status": "Used"}


def broken(rules, **changes):
    return {breach.rule for breach in find_breaches(rules, [("row 2", GOOD), ("row 3", {**GOOD, **changes})])}


def test_only_rules_that_the_validator_is_blind_for_are_taken(rules):
    assert {one.id for one in rules} == {"Kind-1", "Price-4", "Price-5", "CommitmentDiscountStatus-C-005-M"}
    assert broken(rules) == set()


def test_a_good_row_hides_no_bad_one(rules):
    assert broken(rules, Kind="Usages") == {"Kind-1"}
    assert broken(rules, Kind="") == set(), "whether it may be missing is another rule's matter"
    assert broken(rules, Status="Active") == {"CommitmentDiscountStatus-C-005-M"}


def test_a_missing_class_is_no_correction(rules):
    for missing in ("", None):
        assert broken(rules, Price="", ChargeClass=missing) == {"Price-4"}
    assert broken(rules, Price="", ChargeClass="Correction") == set()
    assert broken(rules, Price="", Kind="Tax") == set(), "the condition of the rule that it is a part of"


@pytest.mark.parametrize("cost", ["7.0", "6.00001", "6 USD"])
def test_a_unit_price_times_its_quantity_is_the_cost(rules, cost):
    assert broken(rules, Cost=cost) == {"Price-5"}
    assert broken(rules, Cost=cost, ChargeClass="Correction") == set()


def test_small_costs_are_compared_as_strictly(rules):
    assert broken(rules, Price="0.000000001", Quantity="3.0", Cost="0.000000004") == {"Price-5"}
    assert broken(rules, Price=1e-9, Quantity=3.0, Cost=3e-9) == set()


def test_a_breach_says_how_many_rows_and_where_the_first_is(rules):
    rows = [("row 2", GOOD), *[(f"row {n}", {**GOOD, "Kind": "Usages"}) for n in (3, 4)]]
    (breach,) = find_breaches(rules, rows)
    assert breach.num_rows == 2
    assert breach.first == "row 3: Kind 'Usages'"


def test_a_file_without_a_column_is_not_asked_for_it(rules):
    assert find_breaches(rules, [("row 2", {"Kind": "Usages"})])[0].rule == "Kind-1"
    assert find_breaches(rules, []) == []

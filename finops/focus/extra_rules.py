"""Rules of FOCUS 1.2 that focus-validator 2.2.1 passes whatever a file contains: evaluated here, row by row.

Two defects blind it. A rule is taken for kept where it is an OR and one row of the whole file keeps it
(`CompositeORRuleGenerator`: `violations < total_rows`), so of the "one of the allowed values" rules a single good row
hides every bad one. And a rule that holds when `ChargeClass is not "Correction"` compares null with a text in SQL,
which is never true, so it looks at no row at all (FinOps-Open-Cost-and-Usage-Spec/FOCUS_Spec#2681): among them are
"unit price x quantity is the cost". The rules are read from the validator's own requirements model; nulls are values
here, as the specification means them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
Check = dict[str, Any]
"""A rule, condition or requirement of the validator's model, as its JSON has it."""
Test = Callable[[Row], bool]
MODEL = "focus_validator/rules/model-1.2.0.1.json"
RELATIVE_TOLERANCE, TOLERANCE = 1e-9, 1e-12
"""Of a product of two decimals that were read as floats, against a cost in units of 1e-12."""
_GUARD = {"CheckFunction": "CheckNotValue", "ColumnName": "ChargeClass", "Value": "Correction"}
_CORRECTED_VALUES = {"CommitmentDiscountStatus-C-005-M": ("Used", "Unused")}
"""Where the model lists other values (here Active, Expired, Pending) than the specification's column does."""


@dataclass(frozen=True)
class BlindRule:
    """A rule that the validator does not see broken. `is_broken` takes a row in which missing is None or empty."""

    id: str
    says: str
    columns: tuple[str, ...]
    is_broken: Test


@dataclass(frozen=True)
class Breach:
    """A rule that `num_rows` rows break; `first` is where, and what stands there."""

    rule: str
    says: str
    num_rows: int
    first: str


def blind_rules(package_folder: Path) -> list[BlindRule]:
    """The static rules of the validator's model that its defects hide."""
    rules: dict[str, Check] = {}
    _collect(json.loads((package_folder / MODEL).read_text()), rules)
    parents = {
        item["ModelRuleId"]: name
        for name, rule in rules.items()
        for item in rule["ValidationCriteria"]["Requirement"].get("Items", ())
        if item["CheckFunction"] == "CheckModelRule"
    }
    found = []
    for name, rule in rules.items():
        criteria = rule["ValidationCriteria"]
        if rule["Type"] == "Static" and (_is_choice(criteria["Requirement"]) or _has_guard(criteria["Condition"])):
            found.append(_blind_rule(name, criteria, _conditions(name, rules, parents)))
    return found


def find_breaches(rules: Iterable[BlindRule], rows: Iterable[tuple[str, Row]]) -> list[Breach]:
    """Each rule that is broken. A rule about a column that the file does not have is not asked."""
    counts: dict[str, int] = {}
    first: dict[str, str] = {}
    asked: list[BlindRule] | None = None
    for where, row in rows:
        if asked is None:
            asked = [rule for rule in rules if all(column in row for column in rule.columns)]
        for rule in asked:
            if rule.is_broken(row):
                counts[rule.id] = counts.get(rule.id, 0) + 1
                shown = ", ".join(f"{column} {_shown(row[column])}" for column in rule.columns)
                first.setdefault(rule.id, f"{where}: {shown}")
    return [Breach(rule.id, rule.says, counts[rule.id], first[rule.id]) for rule in asked or () if rule.id in counts]


def _collect(node: object, rules: dict[str, Check]) -> None:
    """Every rule of the model by its id, however deep it stands."""
    if isinstance(node, dict):
        rules.update({key: value for key, value in node.items() if isinstance(value, dict) and _is_rule(value)})
        for value in node.values():
            _collect(value, rules)


def _is_rule(value: Check) -> bool:
    return "ValidationCriteria" in value


def _is_choice(requirement: Check) -> bool:
    """`one of the allowed values`: an OR over values, or over values of two columns together."""
    items = requirement.get("Items", ())
    return requirement.get("CheckFunction") == "OR" and all(
        item["CheckFunction"] in ("CheckValue", "AND") for item in items
    )


def _has_guard(condition: Check) -> bool:
    return condition == _GUARD or (condition.get("CheckFunction") == "AND" and _GUARD in condition["Items"])


def _conditions(name: str, rules: Mapping[str, Check], parents: Mapping[str, str]) -> list[Check]:
    """A rule's condition and those of the composites that it is a part of."""
    found = []
    at: str | None = name
    while at is not None:
        if condition := rules[at]["ValidationCriteria"]["Condition"]:
            found.append(condition)
        at = parents.get(at)
    return found


def _blind_rule(name: str, criteria: Check, conditions: list[Check]) -> BlindRule:
    requirement, applies = criteria["Requirement"], [_test(condition) for condition in conditions]
    if name in _CORRECTED_VALUES:
        (column,) = {item["ColumnName"] for item in requirement["Items"]}
        items = [
            {"CheckFunction": "CheckValue", "ColumnName": column, "Value": value} for value in _CORRECTED_VALUES[name]
        ]
        requirement = {"CheckFunction": "OR", "Items": items}
    columns = tuple(dict.fromkeys(_columns(requirement)))
    kept = _test(requirement)
    # Whether a value may be missing is another rule's matter: a choice and a product are asked of what is there.
    may_be_missing = requirement["CheckFunction"] in ("OR", "ColumnByColumnEqualsColumnValue")

    def is_broken(row: Row) -> bool:
        if may_be_missing and any(_value(row, column) is None for column in columns):
            return False
        return all(test(row) for test in applies) and not kept(row)

    asked = {*columns, *(column for condition in conditions for column in _columns(condition))}
    return BlindRule(name, criteria["MustSatisfy"], (*columns, *sorted(asked - set(columns))), is_broken)


def _columns(check: Check) -> list[str]:
    names = [check[key] for key in ("ColumnName", "ColumnAName", "ColumnBName", "ResultColumnName") if key in check]
    return [*names, *(name for item in check.get("Items", ()) for name in _columns(item))]


def _test(check: Check) -> Test:
    """A check of the model as a function of a row; an unknown one is an error, so that a new model is looked at."""
    kind = check["CheckFunction"]
    if kind in ("AND", "OR"):
        tests, combine = [_test(item) for item in check["Items"]], all if kind == "AND" else any
        return lambda row: combine(test(row) for test in tests)
    if kind == "ColumnByColumnEqualsColumnValue":
        return _product(check["ColumnAName"], check["ColumnBName"], check["ResultColumnName"])
    assert kind in ("CheckValue", "CheckNotValue"), kind
    column, value, wanted = check["ColumnName"], check["Value"], kind == "CheckValue"
    return lambda row: (_value(row, column) == value) is wanted


def _product(first: str, second: str, result: str) -> Test:
    def test(row: Row) -> bool:
        try:
            factors = float(row[first]), float(row[second])
            cost = float(row[result])
        except ValueError:
            return False
        return abs(factors[0] * factors[1] - cost) <= RELATIVE_TOLERANCE * abs(cost) + TOLERANCE

    return test


def _value(row: Row, column: str) -> object:
    return row[column] or None if isinstance(row[column], str) else row[column]


def _shown(value: object) -> str:
    return "is missing" if value in (None, "") else f"'{value}'"

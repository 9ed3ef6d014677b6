"""Reports from their JSON form: today's, or that of stage results and evidence that were stored before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter

from evals.types import QualityReport

ReportT = TypeVar("ReportT")


def from_json(kind: type[ReportT], value: Mapping[str, Any]) -> ReportT:
    """A frozen dataclass from its JSON form. Keys that it does not have are left out."""
    found = _with_present_names(value) if kind is QualityReport else value
    return TypeAdapter(kind).validate_python(found)


def _with_present_names(quality: Mapping[str, Any]) -> dict[str, Any]:
    """A quality report under today's names. Stored results keep the names of their time: their keys do not change."""
    found = dict(quality)
    if "meaningless" in found:
        found["quality_invalid_reason"] = found.pop("meaningless")
    tasks = {name: dict(result) for name, result in found["tasks"].items()}
    for result in tasks.values():
        if "drawing" in result:
            order = result.pop("drawing")
            result["sampling_order"] = order and {**order, "kind": order["order"]}
    return {**found, "tasks": tasks}

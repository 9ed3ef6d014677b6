"""The run tags that say which records belong together, and the names that older records have for them."""

from __future__ import annotations

from collections.abc import Mapping

COMPARISON_GROUP = "comparison_group"
"""Equal for runs that are decided together: suite, load, machine, price, base and engine."""
FRONTIER_GROUP = "frontier_group"
"""Equal for runs of one frontier: the same questions under the same load."""
QUALITY_INVALID_REASON = "quality_invalid_reason"
FORMER = {COMPARISON_GROUP: "comparable", FRONTIER_GROUP: "plane", QUALITY_INVALID_REASON: "quality_meaningless"}
"""Today's name -> the name in records made before it. MLflow keeps those records, so both are read."""


def tag_of(tags: Mapping[str, str], name: str) -> str:
    """A tag's text under its present or its former name; empty where the run has neither.

    >>> tag_of({"plane": "5eeb"}, FRONTIER_GROUP)
    '5eeb'
    """
    return tags.get(name) or tags.get(FORMER[name], "")

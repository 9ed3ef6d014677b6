"""The run tags that are digests, the two tags that are columns, and the names that older records have for them.

The digests' common prefix keeps them in one place, away from the tags that say something (`verdict`, `hardware`).
"""

from __future__ import annotations

from collections.abc import Mapping

PREFIX = "parsimony."
COMPARISON_GROUP = f"{PREFIX}comparison_group"
"""Equal for runs that are decided together: suite, load, machine, price, base and engine."""
FRONTIER_GROUP = f"{PREFIX}frontier_group"
"""Equal for runs of one frontier: the same questions under the same load."""
RUN_KEY = f"{PREFIX}run_key"
"""What was measured, and in which role: a run is found again by it."""
CANDIDATE_KEY = f"{PREFIX}candidate_key"
"""A candidate in its comparison group; its newest run counts."""
PLAN_HASH = f"{PREFIX}plan_hash"
STAGE_KEYS = f"{PREFIX}stage_keys"
"""Stage -> its key in the stage store, as JSON."""
STAGE_KEY = f"{PREFIX}stage_key"
"""The key of the stage that made the checkpoint."""
COMPARISON_FAMILY = f"{PREFIX}comparison_family"
"""The baseline and the way of asking by which a candidate is counted."""
CANDIDATE_DIGEST = f"{PREFIX}candidate_digest"
"""A candidate as it is counted: its weights, and the engine's settings that can change an answer."""
SAMPLING_ORDER = f"{PREFIX}sampling_order"
"""The `gate.order` by which its questions were drawn."""
ARTIFACT_DIGEST = f"{PREFIX}artifact_digest"
"""SHA-256 of the checkpoint as it was measured."""
DECISION_KEY = f"{PREFIX}decision_key"
"""What the decision's pages were drawn from."""
LEDGER_RUN_ID = f"{PREFIX}ledger_run_id"
QUALITY_INVALID_REASON = "quality_invalid_reason"
BUSY_MACHINE = "busy_machine"
"""What else ran while speed and price were measured; a run that was alone has no such tag."""

VERDICTS = {"promote": "promoted", "reject": "rejected", "undecided": "not decided", "hold": "not promoted"}
"""A decision's action -> the verdict that people read."""
_DIGESTS = (
    COMPARISON_GROUP, FRONTIER_GROUP, RUN_KEY, CANDIDATE_KEY, PLAN_HASH, STAGE_KEYS, STAGE_KEY, ARTIFACT_DIGEST,
    DECISION_KEY, LEDGER_RUN_ID,
)  # fmt: skip
_RENAMED = {COMPARISON_GROUP: "comparable", FRONTIER_GROUP: "plane", QUALITY_INVALID_REASON: "quality_meaningless"}
FORMER: Mapping[str, tuple[str, ...]] = {
    name: tuple(
        former for former in (name.removeprefix(PREFIX) if name in _DIGESTS else "", _RENAMED.get(name, "")) if former
    )
    for name in (*_DIGESTS, QUALITY_INVALID_REASON)
}
"""Today's name -> its names in records made before it, newest first. MLflow keeps those records: all are read."""


def short_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """The columns `variant` and `verdict` of a run with these tags; without a decision there is no verdict yet."""
    found = {"variant": tags.get("label", ""), "verdict": verdict_of(tags.get("role", ""), tags.get("decision", ""))}
    return {name: text for name, text in found.items() if text}


def verdict_of(role: str, action: str) -> str:
    """The verdict on a run, in words; an action without a word of its own is its own.

    >>> verdict_of("baseline", ""), verdict_of("candidate", "promote"), verdict_of("candidate", "hold")
    ('baseline', 'promoted', 'not promoted')
    """
    return "baseline" if role == "baseline" else VERDICTS.get(action, action)


def all_names(*names: str) -> tuple[str, ...]:
    """These tags' names, with the former ones of each.

    >>> all_names("role", FRONTIER_GROUP)
    ('role', 'parsimony.frontier_group', 'frontier_group', 'plane')
    """
    return tuple(one for name in names for one in (name, *FORMER.get(name, ())))


def tag_of(tags: Mapping[str, str], name: str) -> str:
    """A tag's text under its present or a former name; empty where the run has none of them.

    >>> tag_of({"plane": "5eeb"}, FRONTIER_GROUP)
    '5eeb'
    """
    return next((tags[one] for one in all_names(name) if tags.get(one)), "")

"""A machine's bill, split among those who shared it, with nothing lost: shares + idle = the bill.

    charges = split_machine(machine, rate, start, end, [
        Use("run-a", "serve", tags_a, 3, start, end), Use("run-b", "evaluate", tags_b, 4, start, later)],
        idle_tags=tags)
    ledger.record(*charges)

The period is cut at every moment a use begins or ends. In each piece the machine's device time is split by slices
(largest remainder) among the uses of that piece and the idle rest, so nothing is lost across MIG slices, preemption and
resume. The idle rest is a charge of its own, labeled idle.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from core.errors import UserError
from finops.ledger.charges import GPU_SLICES, Charge, Rate, Resource, device_charge
from finops.money import TICK_US, from_us, split, to_us


@dataclass(frozen=True)
class Use:
    """A run's share of a machine: `slices` of `GPU_SLICES` per device, from start to end."""

    run_id: str
    stage: str
    tags: Mapping[str, str]
    slices: int
    start: datetime
    end: datetime
    status: str = "completed"
    work: str = "useful"
    mig_profile: str | None = None


def split_machine(
    machine: Resource, rate: Rate, start: datetime, end: datetime, uses: Sequence[Use], *,
    idle_tags: Mapping[str, str], num_slices: int = GPU_SLICES,
) -> list[Charge]:  # fmt: skip
    """One charge per use, and one for idle time where there is any. Their device time adds up to the machine's.

    Raises `UserError` where uses together pass the machine's slices at some moment, or lie outside its period.
    """
    if not 1 <= num_slices <= GPU_SLICES:
        raise UserError(f"machine {machine.id}: num_slices: {num_slices} must be 1 to {GPU_SLICES}")
    start_us, end_us = to_us(start), to_us(end)
    spans = [(to_us(use.start), to_us(use.end)) for use in uses]
    for use, (first, last) in zip(uses, spans, strict=True):
        if not start_us <= first <= last <= end_us or use.slices < 1:
            raise UserError(
                f"machine {machine.id}: the use by {use.run_id} must lie in its period and have slices >= 1"
            )
    edges = sorted({start_us, end_us, *(edge for span in spans for edge in span)})
    quantities, idle = [0] * len(uses), 0
    for first, last in itertools.pairwise(edges):
        active = [index for index, span in enumerate(spans) if span[0] <= first and span[1] >= last]
        free = num_slices - sum(uses[index].slices for index in active)
        if free < 0:
            names = ", ".join(f"{uses[index].run_id} ({uses[index].slices})" for index in active)
            raise UserError(
                f"machine {machine.id}: at {from_us(first).isoformat()} its {num_slices} slices are "
                f"oversubscribed: {names}"
            )
        total = (last - first) // TICK_US * machine.num_devices
        parts = split(total, [*(uses[index].slices for index in active), free])
        for index, part in zip(active, parts, strict=False):
            quantities[index] += part
        idle += parts[-1]
    charges = [
        device_charge(
            run_id=use.run_id, stage=use.stage, resource=_share(machine, use, index), rate=rate, tags=use.tags,
            start=use.start, end=use.end, status=use.status, work=use.work, quantity_micro=quantity,
        )
        for index, (use, quantity) in enumerate(zip(uses, quantities, strict=True))
    ]  # fmt: skip
    if idle:
        charges.append(
            device_charge(
                run_id="", stage="idle", resource=machine, rate=rate, tags=idle_tags, start=start, end=end,
                status="idle", work="idle", meter="idle_time", quantity_micro=idle,
            )
        )  # fmt: skip
    return charges


def _share(machine: Resource, use: Use, index: int) -> Resource:
    """The part of the machine that a use had, with an id of its own (two shares may belong to one run)."""
    if use.slices == GPU_SLICES and use.mig_profile is None:
        return machine
    return replace(machine, id=f"{machine.id}/share-{index}", mig_profile=use.mig_profile, slices=use.slices)

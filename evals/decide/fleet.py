"""What a variant changes for a fleet, as text: machines are on the bill, not tokens. Pure.

Below what one machine carries, the bill is the same whatever it serves. Above it, the variant that carries more needs
fewer machines.
"""

from __future__ import annotations

from evals.cost.curves import fleet_view
from evals.decide.evidence import Evidence, price_verdict
from evals.load.summary import figure, saturating_point
from evals.types import LoadReport


def machine_rate(load: LoadReport) -> float | None:
    """Requests per second that one machine carries: theta_slo where it was searched, else at saturation.

    None where no rate met the objective, nothing was measured, or the load set the pace itself (a trace).
    """
    if load.theta_slo is not None:
        return load.theta_slo.held_req_per_s
    point = saturating_point(load)
    if point is None or point.is_open_loop:
        return None
    rate = figure(point, "req_per_s")
    return None if rate is None else rate.value


def describe_fleet(baseline: Evidence, variant: Evidence, peak_req_per_s: float | None = None) -> str | None:
    """What serving the variant instead of the baseline saves; at the peak that the fleet must carry, where it is given.

    None where one of the two has no rate, or none under the same kind of objective.
    """
    theirs, ours = machine_rate(baseline.load), machine_rate(variant.load)
    if theirs is None or ours is None or (baseline.load.theta_slo is None) != (variant.load.theta_slo is None):
        return None
    basis = "at saturation" if variant.load.theta_slo is None else "within the objective"
    carried = f"one machine carries {ours:.3g} requests/s {basis}, the baseline's {theirs:.3g}"
    prices = baseline.cost.price, variant.cost.price
    saved = 1 - theirs / ours * float(prices[1].usd_per_hour / prices[0].usd_per_hour)
    if peak_req_per_s is not None:
        view = fleet_view(peak_req_per_s, (theirs, prices[0]), (ours, prices[1]))
        bill = (
            f", {abs(view.saving_usd_per_hour):.4g} USD per hour {'less' if view.saving_usd_per_hour > 0 else 'more'}"
        )
        meaning = f"at {peak_req_per_s:g} requests/s it {view.verdict}{bill if view.saving_usd_per_hour else ''}"
    elif round(saved, 2) <= 0:
        meaning = "it saves nothing at any load"
    else:
        meaning = f"it saves nothing while one machine is enough, and at most {saved:.0%} of a large fleet"
    is_doubtful = saved > 0 and price_verdict(variant, baseline).kind != "cheaper"
    return f"{carried}: {meaning}" + (" (that it is cheaper is not shown)" if is_doubtful else "")

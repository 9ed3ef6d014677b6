"""Which part of a request's machine time is due to its input, to its output, and to neither. Pure.

At the saturating concurrency the machine is never idle: a run's seconds divided by its requests are the machine's
seconds per request. Over mixes of different lengths they are fitted as a x input tokens + b x output tokens + c.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from evals.load.summary import t_quantile
from evals.types import Attribution, LoadPoint, LoadReport


def attribute(load: LoadReport, concurrency: int | None) -> Attribution | str:
    """Split a request's machine seconds into a per input token, b per output token and c per request.

    Each repeat of each point at `concurrency` without a shared prefix is one observation: seconds of the run divided
    by requests completed = a x input tokens + b x output tokens + c. Fitted by non-negative least squares on relative
    errors, because the mixes differ in size by more than the noise does. Intervals (95%) are those of weighted least
    squares over the coefficients that are not at their bound of zero, so they include lack of fit as well as noise.

    Returns: the fit, or the reason why there is none.
    """
    points = [
        point
        for point in load.points
        if point.concurrency == concurrency and point.request_rate is None and not point.prefix_share
    ]
    rows = [(point, seconds) for point in points for seconds in _seconds_per_request(point)]
    mixes = {(point.input_tokens, point.output_tokens) for point, _ in rows}
    if len(mixes) < 3:
        return f"needs 3 input/output mixes at concurrency {concurrency}, has {len(mixes)}"
    return fit_seconds(
        [(point.input_tokens, point.output_tokens) for point, _ in rows], [s for _, s in rows], concurrency
    )


def _seconds_per_request(point: LoadPoint) -> list[float]:
    """Machine seconds of one request, for every repeat that completed any."""
    return [1 / rate for repeat in point.repeats if (rate := repeat.get("req_per_s"))]


def non_negative_least_squares(design: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The x >= 0 that minimizes |design x - target|: shapes (n, k), (n,), (k,).

    At the minimum the coefficients above zero are the plain least-squares solution over their own columns, so the best
    feasible one of all 2^k sets of columns is exact. For a handful of columns: importing scipy's solver alone takes
    half a second, a tenth of a run whose stages are all stored.
    """
    num_columns = design.shape[1]
    best, smallest = np.zeros(num_columns), float(target @ target)
    for size in range(1, num_columns + 1):
        for columns in map(list, combinations(range(num_columns), size)):
            found = np.linalg.lstsq(design[:, columns], target, rcond=None)[0]
            errors = design[:, columns] @ found - target
            if np.all(found >= 0) and float(errors @ errors) < smallest:
                best, smallest = np.zeros(num_columns), float(errors @ errors)
                best[columns] = found
    return best


def fit_seconds(
    mixes: Sequence[tuple[int, int]], seconds: Sequence[float], concurrency: int | None = None
) -> Attribution | str:
    """The fit behind `attribute`: `seconds[i]` is what one request of `mixes[i]` (input, output tokens) takes.

    >>> mixes = [(128, 64), (256, 8), (32, 64), (128, 128)]
    >>> fit = fit_seconds(mixes, [0.0002 * i + 0.004 * o + 0.01 for i, o in mixes])
    >>> [round(x, 6) for x in (fit.s_per_input_token, fit.s_per_output_token, fit.s_per_request)]
    [0.0002, 0.004, 0.01]
    """
    y = np.asarray(seconds, dtype=float)
    design = np.array([(inputs, outputs, 1.0) for inputs, outputs in mixes]) / y[:, None]
    # Columns of equal size: without it the solver's tolerance hides small coefficients.
    scale = np.linalg.norm(design, axis=0)
    if np.linalg.matrix_rank(design / scale) < 3:
        return "the mixes do not tell input, output and request apart: choose mixes that differ in both lengths"
    fitted = non_negative_least_squares(design / scale, np.ones_like(y)) / scale
    errors = design @ fitted - 1
    active = [index for index in range(3) if fitted[index] > 0]
    degrees = len(y) - len(active)
    intervals: list[tuple[float, float] | None] = [None, None, None]
    if degrees > 0:
        variance = float(errors @ errors) / degrees
        covariance = np.linalg.inv((design[:, active] / scale[active]).T @ (design[:, active] / scale[active]))
        for place, index in enumerate(active):
            half = t_quantile(0.975, degrees) * math.sqrt(variance * covariance[place, place]) / scale[index]
            intervals[index] = (max(0.0, float(fitted[index] - half)), float(fitted[index] + half))
    return Attribution(
        s_per_input_token=float(fitted[0]),
        s_per_output_token=float(fitted[1]),
        s_per_request=float(fitted[2]),
        s_per_input_token_interval=intervals[0],
        s_per_output_token_interval=intervals[1],
        s_per_request_interval=intervals[2],
        relative_residual=math.sqrt(float(errors @ errors) / len(y)),
        num_observations=len(y),
        num_mixes=len(set(mixes)),
        concurrency=concurrency,
    )

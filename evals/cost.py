"""What a token costs, from a load report and a price. Pure; money is Decimal.

The machine's price per second, divided by what it does in a second, divided by the share of time in which it is busy:

    usd_per_request = usd_per_hour / (3600 x theta x u)

theta is the largest rate that was measured for the declared mix (at saturation, or the one that holds the SLO), u the
declared utilisation. A range of prices and the spread of repeated measurements both widen the interval: the lowest
cost is the lowest price at the highest rate.

The same, as published for Llama-3.1-8B on one H100 at 6.98 USD/h: 6,237.6 output tokens/s at saturation are 0.311 USD
per million output tokens, and FP8 with 8,155.1 is 0.238, 23.5% less:

>>> bf16, fp8 = (usd_per_tokens(Decimal("6.98"), rate, num_tokens=1_000_000) for rate in (6237.6, 8155.1))
>>> round(bf16, 3), round(fp8, 3), round(1 - fp8 / bf16, 3)
(Decimal('0.311'), Decimal('0.238'), Decimal('0.235'))

On one A100 at 3.67 USD/h FP16 makes 2,906.3 output tokens/s and FP8 2,488.5: FP8 is the dearer one.

>>> [round(usd_per_tokens(Decimal("3.67"), rate, num_tokens=1_000_000), 3) for rate in (2906.3, 2488.5)]
[Decimal('0.351'), Decimal('0.410')]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal

from evals.load.summary import Figure, figure, mix_of, saturating_point, t_quantile
from evals.types import Attribution, CostReport, LoadPoint, LoadReport, Money, Price

SECONDS_PER_HOUR = 3600
DEFAULT_UTILISATION = Decimal("0.4")
COEFFICIENTS = ("input token", "output token", "request")


def decimal(value: float | Decimal) -> Decimal:
    """A measured figure as Decimal, digit for digit as it prints.

    >>> decimal(0.1)
    Decimal('0.1')
    """
    return value if isinstance(value, Decimal) else Decimal(repr(float(value)))


def usd_per_tokens(
    usd_per_hour: Decimal, tok_per_s: float | Decimal, num_tokens: int = 1000, utilisation: Decimal = Decimal(1)
) -> Decimal:
    """USD per `num_tokens` tokens (or requests) on a machine that makes `tok_per_s` while it is busy.

    >>> usd_per_tokens(Decimal("3.6"), 100, num_tokens=1000)
    Decimal('0.01')
    >>> usd_per_tokens(Decimal("3.6"), 100, num_tokens=1000, utilisation=Decimal("0.4"))
    Decimal('0.025')
    """
    return usd_per_hour / SECONDS_PER_HOUR * num_tokens / decimal(tok_per_s) / utilisation


def money_per(price: Price, rate: Figure, num: int, utilisation: Decimal = Decimal(1)) -> Money:
    """USD per `num` of what `rate` counts per second, with the interval of the price's range and the rate's repeats.

    One repeat has no interval of its own: the price's range alone is left.

    >>> price = Price("x", Decimal("3.00"), Decimal("4.20"), "on_demand", "", "2026")
    >>> money_per(price, Figure(100.0, 96.0, 105.0, 3, ""), 1000, Decimal(1))  # doctest: +ELLIPSIS
    Money(value=Decimal('0.01'), lo=Decimal('0.0079365...'), hi=Decimal('0.0121527...'))
    """
    fastest = rate.value if rate.hi is None else rate.hi
    slowest = rate.value if rate.lo is None else rate.lo
    return Money(
        value=usd_per_tokens(price.usd_per_hour, rate.value, num, utilisation),
        lo=usd_per_tokens(price.usd_per_hour_lo, fastest, num, utilisation),
        hi=usd_per_tokens(price.usd_per_hour_hi, slowest, num, utilisation),
    )


def cost_report(load: LoadReport, price: Price, utilisation: Decimal = DEFAULT_UTILISATION) -> CostReport:
    """Price a load report: the headline at the declared utilisation, and the peak at saturation.

    Args:
        load: with points of the headline's mix; points of other mixes at the same concurrency split the price between
            input and output tokens.
        price: of the whole machine.
        utilisation: declared share of time at which the machine is busy, in (0, 1].

    Raises:
        ValueError: the utilisation is not in (0, 1].

    """
    if not 0 < utilisation <= 1:
        raise ValueError(f"utilisation is {utilisation}; it must be above 0 and at most 1")
    best = saturating_point(load)
    if best is None:
        reason = f"no point of {mix_of(load)[0]} input and {mix_of(load)[1]} output tokens has a throughput"
        names = [name for name in CostReport.__dataclass_fields__ if "usd_per_1k" in name]
        return CostReport(price, utilisation, None, None, None, None, None, dict.fromkeys(names, reason))
    tokens, requests = figure(best, "total_tok_per_s"), figure(best, "req_per_s")
    assert tokens is not None
    assert requests is not None
    missing: dict[str, str] = {}
    if tokens.lo is None:
        missing["interval"] = f"{tokens.method}; intervals hold the price's range alone"
    fitted = attribute(load, best.concurrency)
    if isinstance(fitted, str):
        missing |= dict.fromkeys(("usd_per_1k_input_tokens", "usd_per_1k_output_tokens"), fitted)
        input_money = output_money = None
    else:
        input_money = _fitted_money(0, fitted, price, utilisation, missing)
        output_money = _fitted_money(1, fitted, price, utilisation, missing)
    return CostReport(
        price=price,
        utilisation=utilisation,
        usd_per_1k_tokens=money_per(price, tokens, 1000, utilisation),
        usd_per_1k_input_tokens=input_money,
        usd_per_1k_output_tokens=output_money,
        usd_per_1k_requests=money_per(price, requests, 1000, utilisation),
        peak_usd_per_1k_tokens=money_per(price, tokens, 1000, Decimal(1)),
        missing=missing,
        basis=f"saturation: {best.name}, the largest throughput of its mix",
        attribution=None if isinstance(fitted, str) else fitted,
    )


def attribute(load: LoadReport, concurrency: int | None) -> Attribution | str:
    """Split a request's machine seconds into a per input token, b per output token and c per request.

    Each repeat of each point at `concurrency` without a shared prefix is one observation: seconds of the run divided
    by requests completed = a x input tokens + b x output tokens + c. Fitted by non-negative least squares on relative
    errors, because the mixes differ in size by more than the noise does. Intervals (95%) are those of weighted least
    squares over the coefficients that are not at their bound of zero, so they hold lack of fit as well as noise.

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


def fit_seconds(
    mixes: Sequence[tuple[int, int]], seconds: Sequence[float], concurrency: int | None = None
) -> Attribution | str:
    """The fit behind `attribute`: `seconds[i]` is what one request of `mixes[i]` (input, output tokens) takes.

    >>> mixes = [(128, 64), (256, 8), (32, 64), (128, 128)]
    >>> fit = fit_seconds(mixes, [0.0002 * i + 0.004 * o + 0.01 for i, o in mixes])
    >>> [round(x, 6) for x in (fit.s_per_input_token, fit.s_per_output_token, fit.s_per_request)]
    [0.0002, 0.004, 0.01]
    """
    import numpy as np
    from scipy.optimize import nnls

    y = np.asarray(seconds, dtype=float)
    design = np.array([(inputs, outputs, 1.0) for inputs, outputs in mixes]) / y[:, None]
    # Columns of equal size: without it the solver's tolerance hides small coefficients.
    scale = np.linalg.norm(design, axis=0)
    if np.linalg.matrix_rank(design / scale) < 3:
        return "the mixes do not tell input, output and request apart: choose mixes that differ in both lengths"
    scaled, _ = nnls(design / scale, np.ones_like(y))
    fitted = scaled / scale
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


def _fitted_money(
    index: int, fit: Attribution, price: Price, utilisation: Decimal, missing: dict[str, str]
) -> Money | None:
    """The price of 1,000 tokens from one coefficient; None, with the reason, where the fit puts it at zero."""
    name = f"usd_per_1k_{'input' if index == 0 else 'output'}_tokens"
    value = (fit.s_per_input_token, fit.s_per_output_token)[index]
    interval = (fit.s_per_input_token_interval, fit.s_per_output_token_interval)[index]
    if value <= 0:
        missing[name] = f"the fit leaves nothing for an {COEFFICIENTS[index]}: not separable from the rest at this load"
        return None
    if interval is None:
        missing[f"{name}.interval"] = "as many coefficients as observations; the interval holds the price's range alone"
    lo, hi = interval or (value, value)

    def usd(seconds: float, usd_per_hour: Decimal) -> Decimal:
        return decimal(seconds) * usd_per_hour / SECONDS_PER_HOUR * 1000 / utilisation

    return Money(usd(value, price.usd_per_hour), usd(lo, price.usd_per_hour_lo), usd(hi, price.usd_per_hour_hi))


def break_even_tokens(
    compress_usd: Decimal, eval_usd: Decimal, baseline_usd_per_token: Decimal, variant_usd_per_token: Decimal
) -> Decimal:
    """Tokens after which the saving has paid for making and evaluating the variant; infinite where it does not save.

    A variant that took 0.30 USD to make and evaluate and saves 0.2 USD per million tokens pays after 1.5 million:

    >>> break_even_tokens(Decimal("0.25"), Decimal("0.05"), Decimal("0.9e-6"), Decimal("0.7e-6"))
    Decimal('1500000')
    >>> break_even_tokens(Decimal("0.25"), Decimal("0.05"), Decimal("0.7e-6"), Decimal("0.7e-6"))
    Decimal('Infinity')
    """
    saving = baseline_usd_per_token - variant_usd_per_token
    if saving <= 0:
        return Decimal("Infinity")
    tokens = (compress_usd + eval_usd) / saving
    return tokens.quantize(Decimal(1)) if tokens == tokens.to_integral_value() else tokens

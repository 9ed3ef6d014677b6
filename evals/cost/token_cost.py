"""What a token costs, from a load report and a price. Pure; money is Decimal.

The machine's price per second, divided by what it does in a second, divided by the share of time in which it is busy:

    usd_per_request = usd_per_hour / (3600 x theta x u)

theta is the largest rate that was measured for the declared mix (at saturation, or the one that meets the SLO), u the
declared utilization. A range of prices and the spread of repeated measurements both widen the interval: the lowest
cost is the lowest price at the highest rate.

The same, as published for Llama-3.1-8B on one H100 at 6.98 USD/h: 6,237.6 output tokens/s at saturation are 0.311 USD
per million output tokens, and FP8 with 8,155.1 is 0.238, 23.5% less:

>>> bf16, fp8 = (usd_per_tokens(Decimal("6.98"), rate, num_tokens=1_000_000) for rate in (6237.6, 8155.1))
>>> round(bf16, 3), round(fp8, 3), round(1 - fp8 / bf16, 3)
(Decimal('0.311'), Decimal('0.238'), Decimal('0.235'))

On one A100 at 3.67 USD/h FP16 makes 2,906.3 output tokens/s and FP8 2,488.5: FP8 is the more expensive one.

>>> [round(usd_per_tokens(Decimal("3.67"), rate, num_tokens=1_000_000), 3) for rate in (2906.3, 2488.5)]
[Decimal('0.351'), Decimal('0.410')]
"""

from __future__ import annotations

import dataclasses
from decimal import Decimal

from evals.cost.attribution import attribute
from evals.load.summary import Figure, figure, mix_of, saturating_point
from evals.types import Attribution, CostReport, LoadReport, Money, Price

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
    """Price a load report: the headline at the declared utilization, and the peak at saturation.

    The headline stands on theta_slo where the scenario found it, or else on the largest throughput that was measured
    for the mix; `basis` says which.

    Args:
        load: with points of the headline's mix; points of other mixes at the same concurrency split the price between
            input and output tokens.
        price: of the whole machine.
        utilisation: declared share of time at which the machine is busy, in (0, 1].

    Raises:
        ValueError: the utilization is not in (0, 1].

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
        missing["interval"] = f"{tokens.method}; intervals include only the price's range"
    fitted = attribute(load, best.concurrency)
    if isinstance(fitted, str):
        missing |= dict.fromkeys(("usd_per_1k_input_tokens", "usd_per_1k_output_tokens"), fitted)
        input_money = output_money = None
    else:
        input_money = _fitted_money(0, fitted, price, utilisation, missing)
        output_money = _fitted_money(1, fitted, price, utilisation, missing)
    theta, basis = _theta(load, requests, best.name)
    if theta is None:
        missing |= dict.fromkeys(("usd_per_1k_tokens", "usd_per_1k_requests"), basis)
    per_request = None if theta is None else money_per(price, theta, 1000, utilisation)
    return CostReport(
        price=price,
        utilisation=utilisation,
        usd_per_1k_tokens=None if per_request is None else _scaled(per_request, Decimal(1) / sum(mix_of(load))),
        usd_per_1k_input_tokens=input_money,
        usd_per_1k_output_tokens=output_money,
        usd_per_1k_requests=per_request,
        peak_usd_per_1k_tokens=money_per(price, tokens, 1000, Decimal(1)),
        missing=missing,
        basis=basis,
        attribution=None if isinstance(fitted, str) else fitted,
    )


def _theta(load: LoadReport, saturated: Figure, point_name: str) -> tuple[Figure | None, str]:
    """The request rate that the headline stands on, and in words what it is (or why there is none)."""
    if load.theta_slo is None:
        return saturated, f"saturation: {point_name}, the largest throughput of its mix; no latency objective"
    found = load.theta_slo
    limits = (("TTFT", found.ttft_p99_s), ("TPOT", found.tpot_p99_s))
    words = " and ".join(f"p99 {name} <= {limit:g} s" for name, limit in limits if limit is not None)
    if found.held_req_per_s is None:
        return None, f"{words}: {found.reason}"
    theta = Figure(found.held_req_per_s, found.held_req_per_s, found.failed_req_per_s, 1, "bracket of the search")
    return theta, f"theta_slo: {words} holds at {found.held_req_per_s:g} requests/s"


def reprice(report: CostReport, price: Price, utilisation: Decimal | None = None) -> CostReport:
    """The same measurement under another price or utilisation: every amount is proportional to the one over the other.

    >>> old, new = (Price("x", Decimal(usd), Decimal(usd), "spot", "", "2026") for usd in ("2.00", "1.00"))
    >>> figure = Money(Decimal("0.10"), Decimal("0.08"), Decimal("0.12"))
    >>> report = CostReport(old, Decimal("0.4"), figure, None, None, None, figure)
    >>> reprice(report, new, Decimal("0.8")).usd_per_1k_tokens.value, reprice(report, new).usd_per_1k_tokens.value
    (Decimal('0.025'), Decimal('0.05'))
    """
    utilisation = report.utilisation if utilisation is None else utilisation
    if not 0 < utilisation <= 1:
        raise ValueError(f"utilisation is {utilisation}; it must be above 0 and at most 1")

    def moved(money: Money | None, share: Decimal) -> Money | None:
        if money is None:
            return None
        value = money.value * price.usd_per_hour / report.price.usd_per_hour * share
        lo = money.lo * price.usd_per_hour_lo / report.price.usd_per_hour_lo * share
        hi = money.hi * price.usd_per_hour_hi / report.price.usd_per_hour_hi * share
        return Money(value, min(lo, value), max(hi, value))  # the last digit of 28 is rounded

    share = report.utilisation / utilisation
    return dataclasses.replace(
        report,
        price=price,
        utilisation=utilisation,
        usd_per_1k_tokens=moved(report.usd_per_1k_tokens, share),
        usd_per_1k_input_tokens=moved(report.usd_per_1k_input_tokens, share),
        usd_per_1k_output_tokens=moved(report.usd_per_1k_output_tokens, share),
        usd_per_1k_requests=moved(report.usd_per_1k_requests, share),
        peak_usd_per_1k_tokens=moved(report.peak_usd_per_1k_tokens, Decimal(1)),
    )


def _scaled(money: Money, factor: Decimal) -> Money:
    return Money(money.value * factor, money.lo * factor, money.hi * factor)


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
        missing[f"{name}.interval"] = (
            "as many coefficients as observations; the interval includes only the price's range"
        )
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

"""From what was measured to MLflow metrics: the names of `pipeline.record.metric_names` (docs/metrics.md). Pure.

A figure that was not measured has no metric: missing is never zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal

from evals.cost.curves import energy_per_token_j, energy_usd_per_1k_tokens
from evals.cost.price_ratio import confidence_at, price_ratio
from evals.cost.token_cost import SECONDS_PER_HOUR, break_even_tokens, decimal
from evals.decide.evidence import mean_quality
from evals.decide.noise_floor import task_floor
from evals.load import summary
from evals.load.counters import MACHINE_USE
from evals.stats import PairedComparison
from evals.types import CostReport, DecisionEvidence, Estimate, LoadReport, Money, QualityReport
from pipeline.config import EnergyConfig
from pipeline.types import Measured, StageOutcome

MIB = 2**20


def run_metrics(
    measured: Measured, base_bytes: int, baseline: Measured | None = None, energy: EnergyConfig | None = None
) -> dict[str, float]:
    """Every metric of one measured candidate; `baseline` is None for the baseline itself."""
    metrics = {
        **quality_metrics(measured.quality),
        **noise_metrics(measured.quality, None if baseline is None else baseline.quality),
        **summary.metrics(measured.load),
        **cost_metrics(measured.cost),
        **price_metrics(measured.cost, measured.load.machine.startup_s),
        **attribution_metrics(measured.cost),
        **energy_metrics(measured.load, energy or EnergyConfig()),
        **spend_metrics(measured, baseline),
        **price_ratio_metrics(measured, baseline),
        "size/bytes": float(measured.artifact.num_bytes),
        "size/ratio": base_bytes / measured.artifact.num_bytes,
        **measured.artifact.making.metrics,
    }
    return metrics | short_metrics(metrics)


def short_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The figures that a list of runs shows, under names that make good columns; from a run's recorded metrics.

    MLflow's table shows every digit, so they are rounded: the metrics under the full names are exact.
    """
    speed = next((value for name, value in metrics.items() if is_headline_speed(name)), None)
    usd, size = metrics.get("cost/usd_per_1k_tokens"), metrics.get("size/bytes")
    figures = {
        "quality": metrics.get("quality/mean"),
        "usd_per_1m_tokens": None if usd is None else 1000 * usd,
        "tok_per_s": speed,
        "size_mib": None if size is None else size / MIB,
    }
    return {name: float(f"{value:.4g}") for name, value in figures.items() if value is not None}


def is_headline_speed(name: str) -> bool:
    """Whether a metric is `load/<scenario>/output_tok_per_s`."""
    parts = name.split("/")
    return len(parts) == 3 and parts[0] == "load" and parts[2] == "output_tok_per_s"


def quality_metrics(report: QualityReport) -> dict[str, float]:
    """`quality/<task>/<metric>` with `.lo` and `.hi`; nothing where the scores mean nothing."""
    if report.quality_invalid_reason:
        return {}
    metrics: dict[str, float] = {}
    for name, result in report.tasks.items():
        metrics.update(_with_interval(f"quality/{name}/{result.metric}", result.estimate))
        if result.like_these is not None:
            metrics.update(_with_interval(f"quality/{name}/like_these", result.like_these))
    mean = mean_quality(report)
    if mean is not None:
        metrics.update(_with_interval("quality/mean", mean))
        metrics["quality/num_items"] = float(mean.num_samples)
        metrics["quality/num_unscored"] = float(mean.num_unscored)
    return metrics


def noise_metrics(quality: QualityReport, baseline: QualityReport | None) -> dict[str, float]:
    """`noise/<task>/...`: how far the answers move along another path, and the margin that this can resolve.

    Nothing where the noise floor was not measured.
    """
    if quality.noise is None:
        return {}
    metrics: dict[str, float] = {}
    for name, one in quality.noise.tasks.items():
        theirs = None if baseline is None else baseline.tasks.get(name)
        floor = None
        if baseline is not None and theirs is not None:
            floor = task_floor(name, theirs.num_items_planned, quality.noise, baseline.noise)
        figures: dict[str, float | None] = {
            f"noise/{name}/num_items": float(one.num_items),
            f"noise/{name}/flip_rate": one.flip_rate,
            f"noise/{name}/rms_nats": one.rms_nats,
            f"noise/{name}/max_nats": one.max_nats,
            f"noise/{name}/rms_probability": one.rms_probability,
            f"noise/{name}/resolvable_points": None if floor is None else floor.accuracy_points,
        }
        metrics.update({key: value for key, value in figures.items() if value is not None})
    return metrics


def comparison_metrics(comparison: PairedComparison | None) -> dict[str, float]:
    """`difference_points`, rounded as a short column, and `quality/recovery`, each with its interval."""
    if comparison is None:
        return {}
    difference = _with_interval("difference_points", _points(comparison.difference))
    metrics = {name: round(value, 2) for name, value in difference.items()}
    if comparison.recovery is not None:
        metrics |= _with_interval("quality/recovery", comparison.recovery)
    return metrics


def gate_metrics(evidence: DecisionEvidence) -> dict[str, float]:
    """`gate/<task>/...`: the difference in points, items used, e-values; `quality/<task>/flip_rate`, `/kl_nats`.

    A certain answer has no e-value, and a task that was not evaluated has nothing.
    """
    metrics: dict[str, float] = {} if evidence.level is None else {"gate/level": evidence.level}
    for task in evidence.tasks.values():
        figures: dict[str, float | None] = {
            f"gate/{task.task}/num_items": float(task.num_items),
            f"gate/{task.task}/num_items_total": float(task.num_items_total),
            f"gate/{task.task}/log_e_pass": task.log_e_pass,
            f"gate/{task.task}/log_e_fail": task.log_e_fail,
            f"gate/{task.task}/max_log_e_pass": task.max_log_e_pass,
            f"gate/{task.task}/max_at": float(task.max_at),
            f"gate/{task.task}/margin_points": task.margin_points,
            f"gate/{task.task}/smallest_margin_points": task.smallest_margin_points,
            f"gate/{task.task}/items_to_decide": None if task.items_to_decide is None else float(task.items_to_decide),
            f"quality/{task.task}/flip_rate": task.flip_rate,
        }
        if task.difference is not None:
            figures.update(_with_interval(f"gate/{task.task}/difference_points", _points(task.difference)))
        if task.like_these is not None:
            figures.update(_with_interval(f"gate/{task.task}/like_these_points", _points(task.like_these)))
        if task.guard is not None and task.guard.difference is not None:
            figures.update(_with_interval(f"gate/{task.task}/accuracy_points", _points(task.guard.difference)))
        if task.divergence is not None:
            figures[f"quality/{task.task}/kl_nats"] = task.divergence.kl_nats
            figures[f"quality/{task.task}/answer_perplexity_ratio"] = task.divergence.answer_perplexity_ratio
        metrics.update({name: value for name, value in figures.items() if value is not None})
    return metrics


def cost_metrics(report: CostReport) -> dict[str, float]:
    """`cost/...` in USD, with `.lo` and `.hi`."""
    amounts: dict[str, Money | None] = {
        "cost/usd_per_1k_tokens": report.usd_per_1k_tokens,
        "cost/usd_per_1m_tokens": None if report.usd_per_1k_tokens is None else _times(report.usd_per_1k_tokens, 1000),
        "cost/usd_per_1k_input_tokens": report.usd_per_1k_input_tokens,
        "cost/usd_per_1k_output_tokens": report.usd_per_1k_output_tokens,
        "cost/usd_per_1k_requests": report.usd_per_1k_requests,
        "cost/peak/usd_per_1k_tokens": report.peak_usd_per_1k_tokens,
    }
    metrics: dict[str, float] = {}
    for name, money in amounts.items():
        if money is not None:
            metrics |= {name: float(money.value), f"{name}.lo": float(money.lo), f"{name}.hi": float(money.hi)}
    return metrics


def price_metrics(report: CostReport, startup_s: float | None = None) -> dict[str, float]:
    """What the machine cost per hour, how busy it was taken to be and how long its server took to start: what
    re-pricing needs.
    """
    price = report.price
    startup = {} if startup_s is None else {"cost/startup_s": startup_s}
    return startup | {
        "cost/usd_per_hour": float(price.usd_per_hour),
        "cost/usd_per_hour.lo": float(price.usd_per_hour_lo),
        "cost/usd_per_hour.hi": float(price.usd_per_hour_hi),
        "cost/utilisation": float(report.utilisation),
        "cost/num_devices": float(price.num_devices),
    }


def price_ratio_metrics(measured: Measured, baseline: Measured | None) -> dict[str, float]:
    """`price/ratio` to the baseline with its interval, its rounds, and the machine's use while they were measured."""
    found = measured.price_rounds
    if baseline is None or found is None or not found.rounds:
        return {}
    metrics = {"price/num_rounds": float(len(found.rounds))}
    per_hour = measured.cost.price.usd_per_hour / baseline.cost.price.usd_per_hour
    ratio = price_ratio(found.rounds, float(per_hour), confidence_at(found.earlier_looks))
    if ratio is not None:
        ends = {"price/ratio": ratio.ratio, "price/ratio.lo": ratio.lo, "price/ratio.hi": ratio.hi}
        metrics |= {name: value for name, value in ends.items() if value is not None}
        metrics["price/confidence"] = ratio.confidence
    for name in MACHINE_USE:
        values = [value for one in found.rounds if (value := one.counters.get(name)) is not None]
        if values:
            metrics[f"price/{name}"] = max(values)
    return metrics


def attribution_metrics(report: CostReport) -> dict[str, float]:
    """Machine seconds of an input token, an output token and a request, and how far the fit is off."""
    fit = report.attribution
    if fit is None:
        return {}
    return {
        "cost/attribution/s_per_input_token": fit.s_per_input_token,
        "cost/attribution/s_per_output_token": fit.s_per_output_token,
        "cost/attribution/s_per_request": fit.s_per_request,
        # As many observations as coefficients are met exactly: that says nothing of the fit.
        **({"cost/attribution/relative_residual": fit.relative_residual} if fit.num_observations > 3 else {}),
    }


def energy_metrics(load: LoadReport, energy: EnergyConfig) -> dict[str, float]:
    """Joules of a token at the headline's point, and what that electricity costs where its price is given.

    Nothing where no counter was read. A GPU's own joules come first; a CPU's are those of its packages.
    """
    point = summary.headline_point(load)
    if point is None:
        return {}
    figure = energy_per_token_j(point, "gpu_energy_j") or energy_per_token_j(point, "cpu_energy_j")
    if figure is None:
        return {}
    joules = figure.value
    metrics = {f"load/{load.scenario}/energy_j_per_token": joules}
    if energy.usd_per_kwh is not None:
        usage = decimal(energy.power_usage_effectiveness)
        usd = energy_usd_per_1k_tokens(1000 * joules, 1000, decimal(energy.usd_per_kwh), usage)
        metrics["cost/energy_usd_per_1k_tokens"] = float(usd)
    return metrics


def spend_metrics(measured: Measured, baseline: Measured | None) -> dict[str, float]:
    """What it cost to know a variant (`cost/compress_usd`, `cost/eval_usd`), and the tokens after which that is earned.

    Wall time of the stages x the machine's price: also of stages that were reused, since somebody paid for them once.
    """
    per_second = measured.cost.price.usd_per_hour / SECONDS_PER_HOUR
    walls = {name: decimal(wall_s) * per_second for name, wall_s in measured.stage_wall_s.items()}
    evaluation = sum((walls[name] for name in ("quality", "noise", "load", "price") if name in walls), Decimal(0))
    metrics = {"cost/eval_usd": float(evaluation)}
    making = [walls[name] for name in ("distill", "compress") if name in walls]
    if making:
        metrics["cost/compress_usd"] = float(sum(making))
    ours = measured.cost.usd_per_1k_tokens
    theirs = None if baseline is None else baseline.cost.usd_per_1k_tokens
    if ours is not None and theirs is not None:
        tokens = break_even_tokens(sum(making, Decimal(0)), evaluation, theirs.value / 1000, ours.value / 1000)
        if tokens.is_finite():
            metrics["cost/break_even_tokens"] = float(tokens)
    return metrics


def estimate_metrics(outcomes: Sequence[StageOutcome]) -> dict[str, float]:
    """`estimate/<stage>/...` and `cost/charged_usd` of the stages that ran; nothing where every stage was reused."""
    if not outcomes:
        return {}
    metrics = {"cost/charged_usd": float(sum((one.charged_usd for one in outcomes), Decimal(0)))}
    errors = []
    for one in outcomes:
        if one.expected_s is None or one.expected_usd is None:
            continue
        name = f"estimate/{one.stage}"
        metrics |= {f"{name}/expected_s": one.expected_s, f"{name}/actual_s": one.actual_s}
        metrics |= {f"{name}/expected_usd": float(one.expected_usd), f"{name}/charged_usd": float(one.charged_usd)}
        if one.relative_error is not None:
            metrics[f"{name}/relative_error"] = one.relative_error
            errors.append(abs(one.relative_error))
    if errors:
        metrics["estimate/mean_abs_relative_error"] = sum(errors) / len(errors)
    return metrics


def _times(money: Money, factor: int) -> Money:
    return Money(money.value * factor, money.lo * factor, money.hi * factor)


def _points(share: Estimate) -> Estimate:
    """A difference of scores in points of a hundred."""
    return Estimate(100 * share.value, 100 * share.lo, 100 * share.hi, share.num_samples)


def _with_interval(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}.lo": estimate.lo, f"{name}.hi": estimate.hi}

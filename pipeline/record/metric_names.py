"""Every metric that a run can write to MLflow: its name, unit and meaning. Pure.

docs/metrics.md is made from this table (`scripts/metric-table`). A test holds the table against the names that the code
writes, so that a metric without a row, or a row without a metric, fails.

A name is a pattern: `<task>` stands for one part between slashes, `[...]` for a part that may be absent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class MetricName:
    """One row of the table."""

    pattern: str
    """The name, for example `quality/<task>/flip_rate`."""
    unit: str
    """The unit as a reader would write it behind a figure; `1` for a plain number or a share between 0 and 1."""
    meaning: str
    has_interval: bool = False
    """Whether `.lo` and `.hi` (95% interval) stand beside it, where an interval is known."""


METRIC_NAMES: tuple[MetricName, ...] = (
    # The list of runs
    MetricName("quality", "1", "`quality/mean`, rounded: a short column."),
    MetricName(
        "difference_points",
        "points",
        "Mean score minus the baseline's, in points of the score, rounded.",
        True,
    ),
    MetricName("usd_per_1m_tokens", "USD", "`cost/usd_per_1m_tokens`, rounded: a short column."),
    MetricName("tok_per_s", "tokens/s", "`load/<scenario>/output_tok_per_s`, rounded: a short column."),
    MetricName("size_mib", "MiB", "`size/bytes` in MiB, rounded: a short column."),
    # Quality and the gate
    MetricName("quality/<task>/flip_rate", "1", "Share of the items that only one of variant and baseline got right."),
    MetricName(
        "quality/<task>/kl_nats", "nats", "Mean KL divergence of the choices' probabilities from the baseline's."
    ),
    MetricName(
        "quality/<task>/answer_perplexity_ratio", "1", "Perplexity of the right answer, over the baseline's perplexity."
    ),
    MetricName("quality/<task>/<metric>", "1", "Score of one task under lm-eval's metric of that task.", True),
    MetricName("quality/<task>/like_these", "1", "The same score for questions like these: an i.i.d. source.", True),
    MetricName("quality/mean", "1", "Mean score over the tasks; tasks weigh the same.", True),
    MetricName("quality/recovery", "1", "Mean over the tasks of the variant's score over the baseline's.", True),
    MetricName("quality/num_items", "items", "Items that the mean score rests on."),
    MetricName("quality/num_unscored", "items", "Items without a score: no answer, or an error."),
    MetricName(
        "gate/<task>/difference_points", "points", "Variant minus baseline, in points of the score that decides.", True
    ),
    MetricName("gate/<task>/num_items", "items", "Items that the gate has seen."),
    MetricName("gate/<task>/num_items_total", "items", "Items that the task has."),
    MetricName("gate/<task>/log_e_pass", "nats", "Log of the evidence against: worse by the margin or more."),
    MetricName("gate/<task>/log_e_fail", "nats", "Log of the evidence against: good enough."),
    MetricName("gate/<task>/max_log_e_pass", "nats", "The largest `log_e_pass` so far: what passes the gate."),
    MetricName("gate/<task>/max_at", "items", "The item at which it was reached; 0 where none was above 0."),
    MetricName("gate/<task>/margin_points", "points", "The margin, in points of the score that decides."),
    MetricName("gate/<task>/smallest_margin_points", "points", "The smallest margin that the answers so far show."),
    MetricName("gate/<task>/items_to_decide", "items", "An estimate of what the declared margin still takes."),
    MetricName(
        "gate/<task>/like_these_points", "points", "The difference for questions like these: an i.i.d. source.", True
    ),
    MetricName(
        "gate/<task>/accuracy_points", "points", "The difference in accuracy, where the probability decides.", True
    ),
    MetricName("gate/level", "1", "The error level at which the variant was tested: its share of `gate.alpha`."),
    # The noise floor
    MetricName("noise/<task>/num_items", "items", "Items that were asked along both paths (`parsimony noise`)."),
    MetricName("noise/<task>/flip_rate", "1", "Share of them whose score differs between the paths."),
    MetricName("noise/<task>/rms_nats", "nats", "Root mean square difference of the choices' log-likelihoods."),
    MetricName("noise/<task>/max_nats", "nats", "The largest of these differences."),
    MetricName("noise/<task>/rms_probability", "1", "Root mean square difference of the right choice's probability."),
    MetricName("noise/<task>/resolvable_points", "points", "Smallest margin that variant and baseline can resolve."),
    # Load
    MetricName("load/<scenario>/[<point>/]output_tok_per_s", "tokens/s", "Output tokens per second.", True),
    MetricName("load/<scenario>/[<point>/]total_tok_per_s", "tokens/s", "Input and output tokens per second.", True),
    MetricName("load/<scenario>/[<point>/]req_per_s", "requests/s", "Finished requests per second.", True),
    MetricName("load/<scenario>/[<point>/]ttft_p50_s", "s", "Time to first token, median.", True),
    MetricName("load/<scenario>/[<point>/]ttft_p99_s", "s", "Time to first token, 99th percentile.", True),
    MetricName("load/<scenario>/[<point>/]tpot_p50_s", "s", "Time per output token after the first, median.", True),
    MetricName(
        "load/<scenario>/[<point>/]tpot_p99_s", "s", "Time per output token after the first, 99th percentile.", True
    ),
    MetricName(
        "load/<scenario>/[<point>/]goodput_req_per_s", "requests/s", "Requests per second that met the SLO.", True
    ),
    MetricName("load/<scenario>/[<point>/]num_errors", "requests", "Requests that failed, over all repeats."),
    MetricName(
        "load/<scenario>/[<point>/]prefix_cache_hit_share", "1", "Share of the prompt tokens found in the prefix cache."
    ),
    MetricName(
        "load/<scenario>/[<point>/]num_preemptions", "1", "Requests that the server put back for lack of memory."
    ),
    MetricName(
        "load/<scenario>/[<point>/]spec_acceptance_share", "1", "Share of the proposed tokens that were accepted."
    ),
    MetricName("load/<scenario>/[<point>/]spec_tokens_per_draft", "tokens", "Accepted tokens per proposal."),
    MetricName("load/<scenario>/[<point>/]kv_cache_use_peak", "1", "Largest used share of the KV cache."),
    MetricName("load/<scenario>/[<point>/]num_waiting_peak", "requests", "Most requests that waited in the server."),
    MetricName("load/<scenario>/[<point>/]cpu_utilisation", "1", "Busy share of all processors."),
    MetricName("load/<scenario>/[<point>/]memory_used_peak_bytes", "bytes", "Most host memory in use."),
    MetricName("load/<scenario>/[<point>/]gpu_utilisation", "1", "Busy share of the GPUs (NVML)."),
    MetricName("load/<scenario>/[<point>/]gpu_memory_used_peak_bytes", "bytes", "Most GPU memory in use (NVML)."),
    MetricName("load/<scenario>/[<point>/]gpu_energy_j", "J", "Energy of the GPUs over one repeat (NVML)."),
    MetricName(
        "load/<scenario>/[<point>/]cpu_energy_j", "J", "Energy of the processor packages over one repeat (RAPL)."
    ),
    MetricName("load/<scenario>/[<point>/]load_average", "1", "The kernel's 1-minute load average meanwhile."),
    MetricName(
        "load/<scenario>/[<point>/]cpu_own_share", "1", "Share of all processors' time that our processes took."
    ),
    MetricName("load/<scenario>/[<point>/]cpu_other_share", "1", "Share that other processes took: not ours."),
    MetricName("load/<scenario>/[<point>/]cpu_steal_share", "1", "Share that the host gave to others (steal)."),
    MetricName(
        "load/<scenario>/theta_slo_req_per_s",
        "requests/s",
        "Largest Poisson rate that met the SLO (`.lo`); `.hi` is the smallest tested rate that did not.",
        True,
    ),
    MetricName("load/<scenario>/energy_j_per_token", "J", "Energy per token at the point that the price rests on."),
    # Price against the baseline
    MetricName(
        "price/ratio", "1", "Price of a token over the baseline's, measured in turn over rounds of fresh starts.", True
    ),
    MetricName(
        "price/confidence",
        "1",
        "Of that interval; above 0.95 where rounds were added to those of an earlier comparison.",
    ),
    MetricName("price/num_rounds", "1", "Rounds that it rests on; each starts both servers anew."),
    MetricName("price/load_average", "1", "Largest 1-minute load average among the rounds."),
    MetricName(
        "price/cpu_own_share", "1", "Largest share of the processors' time, among the rounds, of our processes."
    ),
    MetricName("price/cpu_other_share", "1", "The same of other processes."),
    MetricName("price/cpu_steal_share", "1", "The same of the host (steal)."),
    # Cost
    MetricName("cost/usd_per_1k_tokens", "USD", "Price of 1,000 tokens at the declared utilization.", True),
    MetricName("cost/usd_per_1m_tokens", "USD", "Price of 1,000,000 tokens at the declared utilization.", True),
    MetricName("cost/usd_per_1k_input_tokens", "USD", "Price of 1,000 input tokens at the declared utilization.", True),
    MetricName(
        "cost/usd_per_1k_output_tokens", "USD", "Price of 1,000 output tokens at the declared utilization.", True
    ),
    MetricName("cost/usd_per_1k_requests", "USD", "Price of 1,000 requests at the declared utilization.", True),
    MetricName(
        "cost/peak/usd_per_1k_tokens", "USD", "Price of 1,000 tokens at saturation, always busy: a lower bound.", True
    ),
    MetricName(
        "cost/usd_per_hour", "USD/h", "Price of the whole machine; the interval is the range of its offers.", True
    ),
    MetricName("cost/utilisation", "1", "Declared utilization (`gate.utilisation`)."),
    MetricName("cost/num_devices", "devices", "Devices of the machine: GPUs, or processors."),
    MetricName("cost/startup_s", "s", "Time that vLLM's server took until it answered."),
    MetricName("cost/attribution/s_per_input_token", "s", "Machine time of one input token."),
    MetricName("cost/attribution/s_per_output_token", "s", "Machine time of one output token."),
    MetricName("cost/attribution/s_per_request", "s", "Machine time of one request, beside its tokens."),
    MetricName("cost/attribution/relative_residual", "1", "Error of that fit, relative to the measured time."),
    MetricName(
        "cost/energy_usd_per_1k_tokens", "USD", "Electricity of 1,000 tokens: part of the price, not an addition."
    ),
    MetricName("cost/compress_usd", "USD", "What making the variant cost: its wall time at the machine's price."),
    MetricName("cost/eval_usd", "USD", "What evaluating the variant cost: its wall time at the machine's price."),
    MetricName("cost/break_even_tokens", "tokens", "Tokens after which the saving has paid for making and evaluating."),
    MetricName("cost/charged_usd", "USD", "What the stages of this run were charged to the ledger."),
    MetricName("reprice/<pricing>/cost/[peak/]<amount>", "USD", "The same amount under another price.", True),
    # The estimate against the run
    MetricName("estimate/<stage>/expected_s", "s", "Estimated time of a stage that ran."),
    MetricName("estimate/<stage>/actual_s", "s", "Time that the stage took."),
    MetricName("estimate/<stage>/expected_usd", "USD", "Estimated cost of the stage."),
    MetricName("estimate/<stage>/charged_usd", "USD", "What the stage was charged to the ledger."),
    MetricName("estimate/<stage>/relative_error", "1", "(actual time - estimated time) / actual time."),
    MetricName("estimate/mean_abs_relative_error", "1", "Mean size of these errors over the stages that ran."),
    # The checkpoint
    MetricName("size/bytes", "bytes", "Bytes of the weight files."),
    MetricName("size/ratio", "1", "Bytes of the base over bytes of the variant."),
    MetricName("size/bits_per_weight", "bits", "Stored bits per parameter of the base."),
    MetricName("size/bits_per_weight/<group>", "bits", "The same for one group of tensors."),
    MetricName("compress/wall_s", "s", "Time that the method took."),
    MetricName("compress/peak_host_bytes", "bytes", "Most host memory that the method used."),
    MetricName("compress/peak_device_bytes", "bytes", "Most GPU memory that the method used."),
    MetricName("health/mean_kl_nats", "nats", "KL divergence of the next token from the base's, mean over the text."),
    MetricName("health/top1_agreement", "1", "Share of the positions at which both models name the same next token."),
    MetricName("health/perplexity_ratio", "1", "Perplexity over the base's perplexity, on the same text."),
    MetricName("health/num_nonfinite_logits", "1", "Logits that are not finite numbers."),
    MetricName(
        "health/worst_local_error", "1", "Largest relative error of a decoder layer on the base's hidden states."
    ),
    # Distillation
    MetricName("distill/loss", "1", "Training loss at every logged step: a curve with steps."),
    MetricName("distill/final_loss", "1", "Training loss at the last step."),
    MetricName("distill/tokens_seen", "tokens", "Tokens that the student learned from."),
    MetricName("distill/num_steps", "steps", "Optimizer steps."),
    MetricName("distill/tokens_per_s", "tokens/s", "Training tokens per second."),
    MetricName("distill/mfu", "1", "Model FLOPs of student and live teacher over the machine's peak."),
    MetricName("distill/train_wall_s", "s", "Time of all training attempts."),
    MetricName("distill/train_usd", "USD", "That time at each attempt's price."),
    MetricName("distill/num_attempts", "1", "Attempts that the training took; each interruption adds one."),
    MetricName("distill/lost_s", "s", "Time of work after the last checkpoint, lost to interruptions."),
    MetricName("distill/lost_steps", "steps", "Steps after the last checkpoint, lost to interruptions."),
    MetricName("distill/lost_usd", "USD", "Cost of the lost time."),
    MetricName("distill/spot_coverage", "1", "Share of the training time on spot machines."),
    MetricName("distill/making_wall_s", "s", "Time of all that made the student: teacher, cut and training."),
    MetricName("distill/teacher_wall_s", "s", "Time in which the teacher's cache or texts were made."),
    MetricName("distill/teacher_usd", "USD", "Cost of that time."),
    MetricName("distill/cache/bytes_per_token", "bytes", "Size of the teacher's cache per token."),
    MetricName("distill/cache/kl_rounding", "nats", "What storing 8 bits costs: KL of the stored from the exact top."),
    MetricName("distill/cache/kl_total", "nats", "KL from the full distribution to the stored one: the cache's error."),
    MetricName("distill/cache/num_tokens", "tokens", "Tokens on which the cache's error was measured."),
    MetricName("distill/cache/tail_mass", "1", "Probability outside of the stored top."),
    # Child runs
    MetricName("wall_s", "s", "On a child run, one for each stage: the time that the stage took."),
)
"""In the order of the document. The first row that matches a name is the name's row."""


def row_of(name: str) -> MetricName | None:
    """The row of a recorded metric's name, with or without `.lo` or `.hi`; None where there is none.

    >>> row_of("quality/arc_easy/acc_norm.lo").pattern
    'quality/<task>/<metric>'
    >>> row_of("size/bytes.lo") is None
    True
    """
    plain = name.removesuffix(".lo").removesuffix(".hi")
    for row in METRIC_NAMES:
        if _regex(row.pattern).fullmatch(plain) and (row.has_interval or plain == name):
            return row
    return None


def markdown_table() -> str:
    """The table as Markdown: one row for each name."""
    lines = ["| metric | unit | meaning |", "|---|---|---|"]
    for row in METRIC_NAMES:
        interval = " (with `.lo`, `.hi`)" if row.has_interval else ""
        lines.append(f"| `{row.pattern}`{interval} | {row.unit} | {row.meaning} |")
    return "\n".join(lines) + "\n"


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    escaped = re.escape(pattern).replace(r"\[", "(?:").replace(r"\]", ")?")
    return re.compile(re.sub("<[a-z]+>", "[^/]+", escaped))

"""A run whose answers are known: `python -m tests.integration.known_answers key=value ...`.

Everything is real but the work of the stages themselves: configuration, plan, store, gates and their orders, the
ledger, MLflow and the registry. A variant's answers are a fixed function of its label; `gptq` is much worse than its
baseline.
"""

import hashlib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from core.environments import set_defaults
from core.files import plain
from evals.gate.scores import ItemScore, right_probability, scores_of
from evals.gate.sequential import draw_orders
from evals.quality.run import gated_report, report
from evals.quality.selection import ItemSelection, make_selection
from evals.types import LoadPoint, LoadReport, PriceRound, PriceRounds, QualityReport
from pipeline.checkpoints.folder import checkpoint_digest
from pipeline.cli.app import dispatch, run_command
from pipeline.health.report import HealthReport
from pipeline.stages.base import DequantizedBase
from pipeline.stages.compress import Compress
from pipeline.stages.data import Calibration, Datasets, Fetch
from pipeline.stages.graph import Effects, Stage
from pipeline.stages.health import Health
from pipeline.stages.load import Load
from pipeline.stages.price import InterleavedPrice
from pipeline.stages.quality import Quality

NUM_ITEMS = {"arc_easy": 570, "piqa": 1838}
WORSE = ("gptq",)


def unit(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def item(label: str, task: str, item_id: int) -> dict[str, Any]:
    """An item of two choices, of which the first one is right."""
    margin = 4 * unit(task, item_id) - 1.2
    if label != "none":
        margin += 0.3 * (unit(label, task, item_id) - 0.5) - (1.5 if label in WORSE else 0.0)
    return {
        "item_id": item_id, "score": float(margin > 0), "loglikelihoods": [margin - 9, -9.0], "target": 0,
        "answer": str(int(margin <= 0)), "reason": "", "num_tokens": 40,
    }  # fmt: skip


def answer(selection: ItemSelection, label: str, tasks: Iterable[str]) -> dict[str, Any]:
    """Answer what the selection asks for, as the worker does; the raw outcomes."""
    while (block := selection.next_block(list(tasks))) is not None:
        if selection.is_gated(block.task):
            items = [item(label, block.task, one) for one in block.item_ids]
            scores = [ItemScore(one["score"], right_probability(one["loglikelihoods"], 0)) for one in items]
            selection.feed(block, scores)
    return {
        task: {
            "metric": "acc",
            "filter": "none",
            "items": [item(label, task, one) for one in selection.asked(task)],
            "sampling_order": plain(selection.sampling_order(task)),
            "num_items_total": NUM_ITEMS[task],
            "lm_eval": {},
            "prompts_digest": "",
            "chat_template": None,
            "num_fewshot": 0,
            "version": 1,
        }
        for task in tasks
    }


def quality(self: Quality, folder: Path, effects: Effects) -> dict[str, object]:
    """The quality stage with known answers: counted, ordered and gated by the product."""
    sampling, gated, attempt = self.sampling(effects), self.gated, self.attempt(effects)
    job: dict[str, Any] = {"budgets": sampling.budgets, "uniform_identity": sampling.uniform_identity}
    items = {task: list(range(NUM_ITEMS[task])) for task in self.suite.tasks}
    if gated is None or attempt is None:
        found: QualityReport = report(answer(make_selection(job, items), self.label, items), self.suite)
        return dict(plain(found))
    baseline = effects.result(gated.baseline)
    rule = gated.rule.__class__(**{**vars(gated.rule), "alpha": effects.level(attempt)})
    orders = draw_orders(
        baseline.tasks, rule,
        guided_identity=sampling.guided_identity, uniform_identity=sampling.uniform_identity,
    )  # fmt: skip
    known = {task: scores for task, scores in scores_of(baseline.tasks).items() if task in orders}
    job["gate"] = plain({"rule": rule, "orders": orders, "baseline": known})
    raw = answer(make_selection(job, items), self.label, items)
    return dict(plain(gated_report(raw, self.suite, baseline, rule)))


def base(self: DequantizedBase, folder: Path, effects: Effects) -> dict[str, object]:
    """A base of a few bytes."""
    return {"digest": checkpoint(folder, "none")}


def checkpoint(folder: Path, text: str) -> str:
    """A folder that looks like a checkpoint; its digest."""
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(text)
    (folder / "model" / "model.safetensors").write_bytes(bytes(1000))
    return checkpoint_digest(folder / "model")


def compress(self: Compress, folder: Path, effects: Effects) -> dict[str, object]:
    """A checkpoint of a few bytes that differs by label."""
    effects.result(self.base)
    measured = dict.fromkeys(("wall_s", "peak_host_bytes", "peak_device_bytes", "calibration"))
    digest = checkpoint(folder, self.label)
    return {**measured, "digest": digest, "num_bytes": 1000, "size_metrics": {}, "base": {"digest": "base"}}


def load(self: Load, folder: Path, effects: Effects) -> dict[str, object]:
    """A load that is twice as fast for every variant."""
    speed = 100.0 if self.label == "none" else 200.0
    repeat = {
        "output_tok_per_s": speed, "total_tok_per_s": 5 * speed, "req_per_s": speed / 32, "ttft_p50_s": 0.1,
        "num_completed": 8.0, "duration_s": 1.0,
    }  # fmt: skip
    (folder / "vllm.log").write_text("started")
    point = LoadPoint("c8-128x32", 8, 128, 32, (repeat,) * 3, 0, num_requests=8)
    return dict(plain(LoadReport("quick", (point,), mix=(128, 32))))


def price(self: InterleavedPrice, folder: Path, effects: Effects) -> dict[str, object]:
    """Four rounds in which the candidate is twice as fast, but for half a percent."""
    measured = tuple(
        PriceRound((100.0, 101.0), (200.0 + one, 202.0 + one), "baseline", "2026-11-01T00:00:00+00:00")
        for one in (1.0, -1.0, 1.0, -1.0)
    )
    return dict(plain(PriceRounds("c8-128x32", "c8-128x32", is_together=True, rounds=measured)))


FAKES: Mapping[type[Stage[Any]], Any] = {
    Fetch: lambda self, folder, effects: {"file": "wheel"},
    Datasets: lambda self, folder, effects: {},
    Calibration: lambda self, folder, effects: {"digest": "d"},
    DequantizedBase: base,
    Compress: compress,
    Health: lambda self, folder, effects: dict(plain(HealthReport("not checked", "no tool"))),
    Quality: quality,
    Load: load,
    InterleavedPrice: price,
}


def main(arguments: list[str]) -> int:
    """The product's own command line, with known answers."""
    set_defaults()
    for stage, fake in FAKES.items():
        stage.run = fake  # type: ignore[method-assign]
    return dispatch(arguments)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))

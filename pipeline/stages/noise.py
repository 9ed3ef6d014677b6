"""The noise stage: a checkpoint is asked the same items along a second, equivalent path, and compared with itself.

The first path is the one that quality is measured by: its answers come from the quality stage or from the answer cache,
and only what neither has is asked. The second path's answers have a digest of their own in the cache, so that neither
is ever taken for the other.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from core.errors import ToolError
from core.files import digest_json, plain
from core.store import StageResult
from evals.decide.noise_floor import noise_report
from evals.json_form import from_json
from evals.quality.chat import require_chat_template
from evals.quality.run import Tools, run_suite
from evals.quality.sizes import suite_tokens
from evals.types import NoiseReport, QualityReport
from pipeline.serve.paths import ScoringPath, first_path, second_path
from pipeline.serve.server import keep_log
from pipeline.stages.graph import WORK_SHARE, Effects, Stage, Work
from pipeline.stages.quality import Quality
from pipeline.stages.served import Served


def is_same(report: NoiseReport) -> bool:
    """Whether both paths gave the very same numbers, as two different ways to add hardly do.

    >>> is_same(NoiseReport(("a", "b"), {}))
    False
    """
    moved = [one.max_nats for one in report.tasks.values() if one.max_nats is not None]
    return bool(moved) and max(moved) == 0


@dataclass
class _Counts:
    """What was asked so far."""

    num_items: int = 0
    fresh: int = 0
    known: int = 0

    def add(self, fresh: int, known: int) -> None:
        """Answers that a server gave now, and answers that the cache had."""
        self.fresh += fresh
        self.known += known

    @property
    def fresh_share(self) -> float:
        """Share of the answers that were given now."""
        return self.fresh / max(self.fresh + self.known, 1)


@dataclass(frozen=True)
class Noise(Stage[NoiseReport]):
    """Measure how far a variant's answers move when only their rounding is drawn anew."""

    quality: Quality
    """The variant's own: what is asked of whom."""
    max_items: int
    """Items of each task, at most: the first of its uniform order."""
    label: str
    name = "noise"
    fixed_s = 70.0

    @property
    def served(self) -> Served:
        """The variant behind its engine."""
        return self.quality.served

    @property
    def paths(self) -> tuple[ScoringPath, ScoringPath]:
        """The path that quality is measured by, and the other one."""
        first = first_path(self.served.engine, self.quality.suite.num_concurrent)
        return first, second_path(first, self.served.machine)

    @property
    def inputs(self) -> Mapping[str, object]:
        """What decides the quality stage's answers, the second path, and how many items are asked."""
        answers = self.quality.inputs
        asked = {name: answers[name] for name in ("checkpoint", "target", "suite", "items", "tools")}
        return {**asked, "second": self.paths[1].inputs, "max_items": self.max_items}

    @property
    def work(self) -> Work:
        """The items' tokens, along both paths at most."""
        suite = self.quality.suite
        limits = dict.fromkeys(suite.tasks, self.max_items)
        tokens = suite_tokens(suite.source, suite.tasks, limits, suite.num_fewshot)
        return Work(self.served.method, self.served.num_parameters, tokens, passes=2.0)

    @property
    def needs(self) -> tuple[Stage[object], ...]:
        """The checkpoint and the questions."""
        datasets = self.quality.datasets
        return (self.served.checkpoint,) if datasets is None else (self.served.checkpoint, datasets)

    def check_access(self) -> None:
        """As for the quality stage."""
        self.quality.check_access()

    def run(self, folder: Path, effects: Effects) -> Mapping[str, object]:
        """Ask along the second path, then along the first what is not known yet.

        Raises:
            ConfigError: the suite asks for a chat template, and the checkpoint has none.
            ToolError: vLLM or lm-eval failed; the message ends with its log.

        """
        if self.quality.suite.apply_chat_template:
            require_chat_template(effects.result(self.served.checkpoint).path)
        one, other = self.paths
        counts = _Counts()
        second = self._ask(other, folder / "second", effects, counts, is_second=True)
        first = self._known(second, effects)
        if first is None:
            first = self._ask(one, folder / "first", effects, counts)
        report = noise_report((one.text, other.text), first.tasks, second.tasks)
        if other.must_differ and is_same(report):
            raise ToolError(
                f"{self.served.name}: all answers are equal to the last digit by {one.text} and by {other.text}: on "
                "this processor that is no other path, so nothing is known of the noise floor"
            )
        return {**plain(report), WORK_SHARE: counts.fresh_share}

    def _ask(
        self, path: ScoringPath, folder: Path, effects: Effects, counts: _Counts, *, is_second: bool = False
    ) -> QualityReport:
        """The report of the items along one path."""
        served = effects.served(
            effects.result(self.served.checkpoint), path.engine, self.served.machine, self.served.name
        )
        target = served.launch()
        if is_second:
            target = replace(target, digest=digest_json([target.digest, "second path", path.inputs]))
        done_before = counts.num_items

        def on_progress(done: int, total: int) -> None:
            counts.num_items = done_before + done
            effects.progress(self)(counts.num_items, max(done_before + total, counts.num_items))

        tools = Tools(
            Path(sys.executable),
            effects.home / "answers.sqlite",
            None if self.quality.datasets is None else effects.result(self.quality.datasets),
            on_progress=on_progress,
            on_answers=counts.add,
            meanwhile=served.wait,
            launcher=effects.launcher,
        )
        suite = replace(self.quality.suite, num_concurrent=path.num_concurrent)
        sampling = replace(self.quality.sampling(effects), budgets=dict.fromkeys(suite.tasks, self.max_items))
        report = run_suite(target, suite, folder, tools, sampling)
        keep_log(served.log, folder)
        return report

    def _known(self, asked: QualityReport, effects: Effects) -> QualityReport | None:
        """The quality stage's report, where the store has it and it has all of these items."""
        found = self.quality.find(effects.store)
        if found is None:
            return None
        report = self.quality.load(found)
        for task, result in asked.tasks.items():
            answered = {item.item_id for item in report.tasks[task].items} if task in report.tasks else set()
            if not answered.issuperset(item.item_id for item in result.items):
                return None
        return report

    def load(self, found: StageResult) -> NoiseReport:
        """The report."""
        return from_json(NoiseReport, found.result)

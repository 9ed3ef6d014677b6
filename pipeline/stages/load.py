"""The load stage: vLLM's own benchmark client. It has the machine for itself, among runs of this product."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.environments import versions
from core.files import digest_json, plain
from core.store import StageResult
from evals.json_form import from_json
from evals.load.run import run_load
from evals.load.scenario import LoadScenario
from evals.load.summary import Slo
from evals.load.tokens import load_tokens
from evals.types import LoadConditions, LoadReport
from pipeline.serve.engine import server_environment, speed_inputs
from pipeline.serve.server import keep_log
from pipeline.stages.graph import WORK_SHARE, Effects, Stage, Work
from pipeline.stages.served import Served


@dataclass(frozen=True)
class Load(Stage[LoadReport]):
    """Measure the served model's speed under a load scenario."""

    served: Served
    scenario: LoadScenario
    slo: Slo
    seed: int
    label: str
    name = "load"
    fixed_s = 15.0
    resumable = True
    machine_use = "alone"

    @property
    def inputs(self) -> Mapping[str, object]:
        """The checkpoint, the engine, the machine, the load and the tools."""
        return {
            "checkpoint": self.served.checkpoint.key,
            "target": speed_inputs(self.served.engine, self.served.machine, self.served.python),
            "scenario": self.scenario,
            "slo": self.slo,
            "machine": self.served.machine.fingerprint,
            "seed": self.seed,
            "tools": versions(self.served.python, "vllm"),
        }

    @property
    def work(self) -> Work:
        """Input and output tokens of all requests."""
        return Work(self.served.method, self.served.num_parameters, load_tokens(self.scenario))

    @property
    def needs(self) -> tuple[Stage[object], ...]:
        """The checkpoint."""
        return (self.served.checkpoint,)

    @property
    def known_points(self) -> str:
        """Folder name of the points that other scenarios measured on this machine with these tools."""
        of_any_scenario = {"machine": self.served.machine.fingerprint, "tools": versions(self.served.python, "vllm")}
        return digest_json(of_any_scenario)[:24]

    def run(self, folder: Path, effects: Effects) -> Mapping[str, object]:
        """Serve the checkpoint and send the load.

        Raises:
            ToolError: vLLM or its client failed; the message ends with its log.

        """
        served = self.served.start(effects)
        target = served.target()
        progress, counts = effects.progress(self), [0, 1]

        def on_run(done: int, total: int) -> None:
            counts[:] = counts[0] + 1, total
            progress(done, total)

        report = run_load(
            target,
            self.scenario,
            self.served.python,
            folder,
            self.seed,
            env=server_environment(self.served.engine, self.served.machine),
            slo=self.slo if self.slo else None,
            machine=LoadConditions(**self.served.machine.fingerprint, engine=target.engine, startup_s=served.startup_s),
            on_run=on_run,
            known=effects.home / "points" / self.known_points,
        )
        keep_log(served.log, folder)
        return {**plain(report), WORK_SHARE: counts[0] / counts[1]}

    def load(self, found: StageResult) -> LoadReport:
        """The report."""
        return from_json(LoadReport, found.result)

"""The decision's record and page, put on the candidate's MLflow run."""

from __future__ import annotations

from core.files import digest_json, write_json
from evals.config import GateConfig
from evals.stats import PairedComparison
from evals.types import Decision
from pipeline.record.metrics import comparison_metrics, gate_metrics
from pipeline.record.run_record import decision_tags
from pipeline.record.store import Recorder, staging_folder
from pipeline.record.tags import DECISION_KEY, tag_of
from pipeline.report import decision_page, frontier_figure
from pipeline.report.decision_page import DecisionRecord


def record_decision(
    decision: Decision,
    comparison: PairedComparison | None,
    page: DecisionRecord | None,
    run_id: str,
    model: str,
    gate: GateConfig,
    recorder: Recorder,
) -> None:
    """Add the decision's record and page, and the frontier's picture and page, to the candidate's run.

    They are drawn once: the same decision among the same runs has them already.
    """
    runs = recorder.runs(model)
    key = digest_json({"decision": decision, "runs": [run.info.run_id for run in runs], "gate": gate})
    if tag_of(recorder.client.get_run(run_id).data.tags, DECISION_KEY) == key:
        return
    with staging_folder() as folder:
        if page is None:
            write_json(folder / decision_page.RECORD, decision)
        else:
            decision_page.write(page, folder)
        frontier_figure.draw(model, runs, folder, recorder.evidence)
        recorder.annotate(
            run_id,
            tags=decision_tags(decision, key),
            metrics=comparison_metrics(comparison) | gate_metrics(decision.evidence),
            folder=folder,
        )

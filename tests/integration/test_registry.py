"""Decisions applied to a real MLflow store (SQLite): promotion, hold, replacement, rollback, and every refusal."""

import json
import shutil
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from core.errors import ConfigError
from core.files import plain, write_json
from evals.config import GateConfig
from evals.decide.declared import level_of_one
from evals.decide.evidence import Evidence, price_verdict
from evals.types import Decision, QualityReport
from finops.controls.approvals import Approvals
from finops.ledger.ledger import Ledger
from finops.reports.kpis import kpis
from finops.reports.savings import savings
from pipeline.checkpoints.folder import checkpoint_digest
from pipeline.config import FinopsConfig, LedgerConfig, ModelConfig, PromoteConfig, RunConfig, TrackingConfig
from pipeline.promote import PromotionRefusedError, Subject, promote, promote_winner, require_artifact
from pipeline.record.candidates import RecordedCandidates, recorded_candidates
from pipeline.record.metrics import cost_metrics, quality_metrics
from pipeline.record.registry import PREVIOUS, rollback
from pipeline.record.store import Recorder, RunRecord, connect
from tests.unit.pipeline.test_decide import GOOD, WORSE, cost, load, rounds, task

pytestmark = pytest.mark.integration
PROMOTE = Decision("promote", "int8", ("passed: quality",))
HOLD = Decision("hold", "int8", ("not met: price",))


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with its tables and nothing else: MLflow takes seconds to make one."""
    folder = tmp_path_factory.mktemp("empty")
    connect(TrackingConfig(f"sqlite:///{folder}/mlflow.db"))
    return folder / "mlflow.db"


@pytest.fixture
def recorder(tmp_path: Path, empty_store: Path) -> Recorder:
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    return Recorder(TrackingConfig(f"sqlite:///{tmp_path}/mlflow.db", f"{tmp_path}/artifacts"))


@pytest.fixture(autouse=True)
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The ledger that promotions are noted in."""
    url = f"sqlite:///{tmp_path}/finops.db"
    monkeypatch.setenv("PARSIMONY_LEDGER_URL", url)
    return url


def a_checkpoint(folder: Path, content: str) -> tuple[Path, str]:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(content)
    return folder, checkpoint_digest(folder)


def a_run(recorder: Recorder) -> str:
    return str(recorder.client.create_run(recorder.experiment_id).info.run_id)


def test_the_registrys_whole_life(recorder: Recorder, tmp_path: Path) -> None:
    client = recorder.client
    first, second = a_checkpoint(tmp_path / "a", "{}"), a_checkpoint(tmp_path / "b", "{ }")
    held = promote(recorder, a_run(recorder), HOLD, "tiny", *first, PromoteConfig())
    assert held == "registry: unchanged"
    off = promote(recorder, a_run(recorder), PROMOTE, "tiny", *first, PromoteConfig(enabled=False))
    assert "enabled=false" in off
    assert not client.search_registered_models()
    with pytest.raises(PromotionRefusedError, match="nothing to go back to: no version is registered"):
        rollback(recorder, "tiny", "champion")

    text = promote(recorder, a_run(recorder), PROMOTE, "tiny", *first, PromoteConfig())
    assert "version 1 is now 'champion'" in text
    champion = client.get_model_version_by_alias("tiny", "champion")
    assert champion.tags["digest"] == first[1]
    assert champion.tags["decision_page"].endswith("decision.html")
    assert client.download_artifacts(champion.run_id, "model/config.json", str(tmp_path))
    with pytest.raises(PromotionRefusedError, match="only version 1 was 'champion'"):
        rollback(recorder, "tiny", "champion")

    again = promote(recorder, a_run(recorder), PROMOTE, "tiny", *first, PromoteConfig())
    assert "already" in again
    assert len(client.search_model_versions("name = 'tiny'")) == 1

    replaced = promote(recorder, a_run(recorder), PROMOTE, "tiny", *second, PromoteConfig())
    assert "version 2 is now 'champion'; version 1 keeps 'previous'" in replaced
    assert aliases(recorder) == {"champion": "2", PREVIOUS: "1"}

    back = rollback(recorder, "tiny", "champion")
    assert back == "registry: tiny version 1 is 'champion' again; version 2 keeps 'previous'"
    assert aliases(recorder) == {"champion": "1", PREVIOUS: "2"}
    rollback(recorder, "tiny", "champion")
    assert aliases(recorder) == {"champion": "2", PREVIOUS: "1"}


def aliases(recorder: Recorder, model: str = "tiny") -> dict[str, str]:
    return {
        name: str(recorder.client.get_model_version_by_alias(model, name).version) for name in ("champion", PREVIOUS)
    }


def test_a_rollback_to_weights_that_changed_is_refused(recorder: Recorder, tmp_path: Path) -> None:
    for name, content in (("a", "{}"), ("b", "{ }")):
        promote(recorder, a_run(recorder), PROMOTE, "tiny", *a_checkpoint(tmp_path / name, content), PromoteConfig())
    version = recorder.client.get_model_version_by_alias("tiny", PREVIOUS)
    stored = tmp_path / "artifacts" / version.run_id / "artifacts" / "model" / "config.json"
    stored.write_text("{   }")
    with pytest.raises(PromotionRefusedError, match="version 1 of tiny has changed since it was measured"):
        rollback(recorder, "tiny", "champion")
    assert aliases(recorder) == {"champion": "2", PREVIOUS: "1"}


def test_a_changed_or_missing_checkpoint_is_refused(recorder: Recorder, tmp_path: Path) -> None:
    folder, digest = a_checkpoint(tmp_path / "c", "{}")
    with pytest.raises(PromotionRefusedError, match="is gone"):
        require_artifact(tmp_path / "nowhere", "digest")
    (folder / "config.json").write_text("{ 1 }")
    with pytest.raises(PromotionRefusedError, match="has changed since it was measured"):
        promote(recorder, a_run(recorder), PROMOTE, "tiny", folder, digest, PromoteConfig())
    assert not recorder.client.search_registered_models()


def test_old_evidence_is_refused_and_the_oldest_run_counts(recorder: Recorder, tmp_path: Path) -> None:
    checkpoint = a_checkpoint(tmp_path / "d", "{}")
    decision = replace(PROMOTE, rule=GateConfig(max_age_days=30))
    now = datetime.now(UTC)
    old = recorder.client.create_run(
        recorder.experiment_id, start_time=int((now - timedelta(days=31)).timestamp() * 1000)
    )
    with pytest.raises(PromotionRefusedError, match=r"31\.0 days old .*gate\.max_age_days=30") as refused:
        promote(
            recorder, a_run(recorder), decision, "tiny", *checkpoint, PromoteConfig(), evidence_runs=[old.info.run_id]
        )
    assert refused.value.exit_code == 2
    assert not recorder.client.search_registered_models()
    reused = a_run(recorder)
    recorder.client.set_tag(reused, "measured_at", (now - timedelta(days=40)).isoformat(timespec="seconds"))
    with pytest.raises(PromotionRefusedError, match=r"40\.0 days old"):
        promote(recorder, reused, decision, "tiny", *checkpoint, PromoteConfig())
    later = now + timedelta(days=29)
    assert "is now 'champion'" in promote(
        recorder, a_run(recorder), decision, "tiny", *checkpoint, PromoteConfig(), now=later
    )


def test_an_approval_is_needed_where_it_is_asked_for(recorder: Recorder, tmp_path: Path) -> None:
    folder, digest = a_checkpoint(tmp_path / "e", "{}")
    asked: list[Subject] = []

    def approvals(subject: Subject) -> str | None:
        asked.append(subject)
        return "maria" if len(asked) > 1 else None

    settings = PromoteConfig(require_approval=True)
    with pytest.raises(PromotionRefusedError, match="require_approval=true: nobody has approved 'int8'"):
        promote(recorder, a_run(recorder), PROMOTE, "tiny", folder, digest, settings)
    run_id = a_run(recorder)
    with pytest.raises(PromotionRefusedError, match="nobody has approved"):
        promote(recorder, run_id, PROMOTE, "tiny", folder, digest, settings, approvals=approvals)
    promote(recorder, run_id, PROMOTE, "tiny", folder, digest, settings, approvals=approvals)
    assert asked[-1] == Subject("tiny", "int8", digest, run_id)
    assert recorder.client.get_model_version_by_alias("tiny", "champion").tags["approved_by"] == "maria"


def record(
    recorder: Recorder,
    tmp_path: Path,
    label: str,
    scores: list[float],
    usd: str,
    suite: str = "same",
    group_tag: str = "comparison_group",
) -> str:
    """A measured run as the pipeline records it."""
    quality = QualityReport({"arc_easy": task(scores, suite)})
    priced = cost(usd)
    folder, digest = a_checkpoint(tmp_path / f"{label}-{suite}", json.dumps(label))
    tags: dict[str, Any] = {
        "model": "tiny",
        "label": label,
        "role": "baseline" if label == "none" else "candidate",
        group_tag: suite,
        "candidate_key": f"{label}-{suite}",
        "artifact_path": str(folder),
        "artifact_digest": digest,
    }
    evidence = Evidence(label, quality, load(), priced, None if label == "none" else rounds(float(usd)))
    metrics = quality_metrics(quality) | cost_metrics(priced) | {"cost/eval_usd": 0.5}
    metrics |= {} if label == "none" else {"cost/compress_usd": 0.25}
    return recorder.record(RunRecord(f"{label}-{suite}", label, tags, {}, metrics, {}, {}, {"load": 1.0}, evidence))[0]


def a_config(**gate: Any) -> RunConfig:
    return RunConfig(model=ModelConfig(name="tiny"), gate=GateConfig(num_resamples=500, **gate))


def candidates_of(config: RunConfig, recorder: Recorder, run_id: str | None = None) -> RecordedCandidates:
    return recorded_candidates(recorder, config.model.name, config.gate, config.seed, level_of_one, run_id)


def test_the_rounds_of_a_price_are_recorded_and_an_older_record_has_none(recorder: Recorder, tmp_path: Path) -> None:
    run_id = record(recorder, tmp_path, "int8", GOOD, "0.5")
    found = recorder.evidence(run_id)
    assert found.price_rounds == rounds(0.5)
    older = plain(found)
    del older["price_rounds"]
    write_json(tmp_path / "evidence.json", older)
    recorder.client.log_artifact(run_id, str(tmp_path / "evidence.json"))
    assert recorder.evidence(run_id).price_rounds is None
    assert price_verdict(recorder.evidence(run_id), replace(found, label="none")).kind == "undecided"


def test_a_training_curve_is_a_metric_with_steps(recorder: Recorder) -> None:
    evidence = Evidence("none", QualityReport({}), load(), cost("1"))
    points = [(step, 1 / step) for step in range(1, 1200)]  # more than MLflow takes in one call
    curves = {"distill/loss": points}
    run_id, _ = recorder.record(RunRecord("c", "none", {}, {}, {}, {}, {}, {}, evidence, curves))
    history = recorder.client.get_metric_history(run_id, "distill/loss")
    assert sorted((point.step, point.value) for point in history) == points


def test_the_cheapest_recorded_candidate_that_passed_is_promoted_with_its_record(
    recorder: Recorder, tmp_path: Path
) -> None:
    record(recorder, tmp_path, "none", GOOD, "1", "older suite")
    record(recorder, tmp_path, "fp8", GOOD, "0.1", "older suite")
    for label, scores, usd in (
        ("none", GOOD, "1"),
        ("int8", GOOD, "0.6"),
        ("awq", WORSE, "0.2"),
        ("gptq", GOOD, "0.5"),
    ):
        record(recorder, tmp_path, label, scores, usd)
    config = a_config()
    found = candidates_of(config, recorder)
    assert found.num_others == 1
    assert {run.data.tags["label"] for run in found.candidates} == {"int8", "awq", "gptq"}
    text = promote_winner(found, config, recorder)
    assert "tiny version 1 is now 'champion'" in text
    champion = recorder.client.get_model_version_by_alias("tiny", "champion")
    assert champion.tags["variant"] == "gptq"
    assert champion.tags["evidence_runs"].split(",") == [champion.run_id, found.baseline.info.run_id]
    names = {item.path for item in recorder.client.list_artifacts(champion.run_id)}
    assert {"decision.json", "decision.html", "gate.png", "model"} <= names
    kept = json.loads(
        Path(recorder.client.download_artifacts(champion.run_id, "decision.json", str(tmp_path))).read_text()
    )
    assert {loss["variant"] for loss in kept["losses"]} == {"int8", "awq"}
    # A stricter gate holds everything and leaves the registry as it is.
    assert "no candidate passed" in promote_winner(
        candidates_of(a_config(delta_points=0.0), recorder), config, recorder
    )
    assert aliases_of(recorder) == ["1"]


def test_deciding_again_asks_the_ledger_for_approval_and_says_what_became_of_it(
    recorder: Recorder, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARSIMONY_USER", "ann")
    record(recorder, tmp_path, "none", GOOD, "1")
    run_id = record(recorder, tmp_path, "gptq", GOOD, "0.5")
    config = replace(a_config(), promote=PromoteConfig(require_approval=True))
    with pytest.raises(PromotionRefusedError, match="waits for approval, request 1"):
        promote_winner(candidates_of(config, recorder), config, recorder)
    tags = recorder.client.get_run(run_id).data.tags
    assert tags["decision"] == "hold"
    assert "not met: promotion: promote.require_approval=true" in tags["reasons"]
    with closing(Ledger(where)) as ledger:
        Approvals(ledger).decide(1, approve=True, who="bob")
    assert "is now 'champion'" in promote_winner(candidates_of(config, recorder), config, recorder)
    assert recorder.client.get_run(run_id).data.tags["decision"] == "promote"
    assert recorder.client.get_model_version_by_alias("tiny", "champion").tags["approved_by"] == "bob"


def test_deciding_again_notes_what_the_promotion_saves(
    recorder: Recorder, tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    record(recorder, tmp_path, "none", GOOD, "1")
    for number, (label, usd) in enumerate((("gptq", "0.5"), ("int8", "0.4")), start=1):
        record(recorder, tmp_path, label, GOOD, usd)
        assert f"version {number} is now" in promote_winner(candidates_of(a_config(), recorder), a_config(), recorder)
    with closing(Ledger(where)) as ledger:
        first, second = savings(ledger)
        assert (first.model_id, first.replaced_model_id) == ("tiny:v1", None)
        assert (second.model_id, second.replaced_model_id) == ("tiny:v2", "tiny:v1")
        (cost,) = [one for one in kpis(ledger) if one.name == "usd_per_promotion_decision"]
        assert cost.value == Decimal("1.25"), "the candidate's making and asking, and its baseline's asking"
    record(recorder, tmp_path, "rtn-int8", GOOD, "0.3")
    unreachable = replace(
        a_config(), finops=FinopsConfig(ledger=LedgerConfig("postgresql://u:topsecret@127.0.0.1:1/x"))
    )
    assert "version 3 is now" in promote_winner(candidates_of(unreachable, recorder), unreachable, recorder)
    assert "the promotion is not in the ledger" in caplog.text
    assert "topsecret" not in caplog.text


def aliases_of(recorder: Recorder) -> list[str]:
    return [str(version.version) for version in recorder.client.search_model_versions("name = 'tiny'")]


def test_a_run_stands_beside_its_own_baseline(recorder: Recorder, tmp_path: Path) -> None:
    record(recorder, tmp_path, "none", GOOD, "1", "older suite")
    old = record(recorder, tmp_path, "fp8", GOOD, "0.1", "older suite")
    record(recorder, tmp_path, "none", GOOD, "1")
    record(recorder, tmp_path, "int8", GOOD, "0.6")
    found = candidates_of(a_config(), recorder, old)
    assert [run.data.tags["label"] for run in found.candidates] == ["fp8"]
    assert found.index_of(recorder.client.get_run(old)) == 0


def test_records_with_the_tags_former_name_are_in_the_same_comparison_group(recorder: Recorder, tmp_path: Path) -> None:
    record(recorder, tmp_path, "none", GOOD, "1", group_tag="comparable")
    record(recorder, tmp_path, "int8", GOOD, "0.6", group_tag="comparable")
    record(recorder, tmp_path, "gptq", GOOD, "0.5")
    found = candidates_of(a_config(), recorder)
    assert {run.data.tags["label"] for run in found.candidates} == {"int8", "gptq"}
    assert found.baseline.data.tags["label"] == "none"


def test_without_records_the_message_says_what_to_do(recorder: Recorder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run is recorded"):
        candidates_of(a_config(), recorder)
    record(recorder, tmp_path, "none", GOOD, "1")
    with pytest.raises(ConfigError, match="no candidate is recorded beside its baseline"):
        candidates_of(a_config(), recorder)

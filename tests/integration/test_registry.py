"""Promotion against a real MLflow store: first version, replacement, the former one kept, refusals."""

from pathlib import Path

import pytest

from common.errors import ConfigError
from pipeline.promote import PREVIOUS, promote, require_artifact
from pipeline.record.store import Recorder
from pipeline.schema import PromoteConfig, TrackingConfig
from pipeline.types import Decision

pytestmark = pytest.mark.integration
PROMOTE = Decision("promote", "int8", ("passed: quality",), {}, {})
HOLD = Decision("hold", "int8", ("not met: price",), {}, {})


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    folder = tmp_path_factory.mktemp("tracking")
    return Recorder(TrackingConfig(f"sqlite:///{folder}/mlflow.db", f"{folder}/artifacts"))


def a_checkpoint(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(content)
    return folder


def a_run(recorder: Recorder) -> str:
    return str(recorder.client.create_run(recorder.experiment_id).info.run_id)


def test_the_registrys_whole_life(recorder: Recorder, tmp_path: Path) -> None:
    client = recorder.client
    first, second = a_checkpoint(tmp_path / "a", "{}"), a_checkpoint(tmp_path / "b", "{ }")
    held = promote(recorder, a_run(recorder), HOLD, "tiny", first, "digest-a", PromoteConfig())
    assert held == "registry: unchanged"
    off = promote(recorder, a_run(recorder), PROMOTE, "tiny", first, "digest-a", PromoteConfig(enabled=False))
    assert "enabled=false" in off
    assert not client.search_registered_models()

    said = promote(recorder, a_run(recorder), PROMOTE, "tiny", first, "digest-a", PromoteConfig())
    assert "version 1 is now 'champion'" in said
    champion = client.get_model_version_by_alias("tiny", "champion")
    assert champion.tags["digest"] == "digest-a"
    assert client.download_artifacts(champion.run_id, "model/config.json", str(tmp_path))

    again = promote(recorder, a_run(recorder), PROMOTE, "tiny", first, "digest-a", PromoteConfig())
    assert "already" in again
    assert len(client.search_model_versions("name = 'tiny'")) == 1

    replaced = promote(recorder, a_run(recorder), PROMOTE, "tiny", second, "digest-b", PromoteConfig())
    assert "version 2 is now 'champion'; version 1 keeps 'previous'" in replaced
    assert str(client.get_model_version_by_alias("tiny", "champion").version) == "2"
    assert str(client.get_model_version_by_alias("tiny", PREVIOUS).version) == "1"


def test_a_changed_or_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = a_checkpoint(tmp_path / "c", "{}")
    with pytest.raises(ConfigError, match="has changed since it was measured"):
        require_artifact(folder, "another digest")
    with pytest.raises(ConfigError, match="is gone"):
        require_artifact(tmp_path / "nowhere", "digest")

"""The registered versions: which there are, and whether their stored weights are still those that were promoted."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from pipeline.checkpoints.folder import checkpoint_digest
from pipeline.record.registry import PREVIOUS, WEIGHTS, champion_version

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

MAX_VERSIONS = 1000


@dataclass(frozen=True)
class Verified:
    """One version after its stored weights were hashed again."""

    model: str
    version: str
    alias: str
    expected: str
    """SHA-256 of the weights as they were promoted."""
    found: str | None
    """SHA-256 of what is stored now; None where nothing is."""

    @property
    def is_same(self) -> bool:
        """Whether the stored weights are those that were promoted."""
        return self.found is not None and self.found == self.expected


def registered_models(client: MlflowClient) -> list[str]:
    """Names of the registered models."""
    return sorted(str(one.name) for one in client.search_registered_models(max_results=MAX_VERSIONS))


def all_versions(client: MlflowClient) -> list[ModelVersion]:
    """Every registered version of every model."""
    return list(client.search_model_versions(max_results=MAX_VERSIONS))


def verify_model(client: MlflowClient, model: str, alias: str) -> list[Verified]:
    """Hash the stored weights of the champion and of the version before it."""
    found = []
    for name in (alias, PREVIOUS):
        version = champion_version(client, model, name)
        if version is not None:
            expected = str(version.tags.get("digest", ""))
            found.append(Verified(model, str(version.version), name, expected, stored_digest(client, version)))
    return found


def stored_digest(client: MlflowClient, version: ModelVersion) -> str | None:
    """SHA-256 of a version's stored weights, downloaded where they are on another machine; None: nothing is there."""
    place = urlparse(str(version.source))
    if place.scheme in ("", "file"):
        folder = Path(unquote(place.path))
        return checkpoint_digest(folder) if folder.is_dir() else None
    if not client.list_artifacts(version.run_id, WEIGHTS):
        return None
    with tempfile.TemporaryDirectory() as scratch:
        return checkpoint_digest(Path(client.download_artifacts(version.run_id, WEIGHTS, scratch)))

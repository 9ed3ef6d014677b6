"""The model registry: the champion, the version before it, and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from core.errors import UserError
from pipeline.checkpoints.folder import checkpoint_digest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from pipeline.record.store import Recorder

PREVIOUS = "previous"
WEIGHTS = "model"
"""Artifact folder of a promoted run's weights."""


class PromotionRefusedError(UserError):
    """A promotion that its evidence does not carry."""


@dataclass(frozen=True)
class Subject:
    """What somebody approves: this checkpoint as a version of this model."""

    model: str
    variant: str
    digest: str
    """SHA-256 of the checkpoint."""
    run_id: str
    """The MLflow run that has the evidence."""


def rollback(recorder: Recorder, model: str, alias: str) -> str:
    """Make the version before the champion again; the one that it replaces keeps `previous`, so twice is nothing.

    Raises:
        PromotionRefusedError: there is no version to go back to, or its weights have changed or are gone.

    """
    client = recorder.client
    champion, previous = (champion_version(client, model, name) for name in (alias, PREVIOUS))
    if previous is None:
        known = "no version is registered" if champion is None else f"only version {champion.version} was '{alias}'"
        raise PromotionRefusedError(f"model={model}: nothing to go back to: {known}")
    require_stored(client, previous)
    client.set_registered_model_alias(model, alias, previous.version)
    if champion is not None:
        client.set_registered_model_alias(model, PREVIOUS, champion.version)
    former = "" if champion is None else f"; version {champion.version} keeps '{PREVIOUS}'"
    return f"registry: {model} version {previous.version} is '{alias}' again{former}"


def require_stored(client: MlflowClient, version: ModelVersion) -> None:
    """Check that a version's stored weights are those that were promoted.

    A store on this machine is read and its digest compared; a remote one must still list the files.

    Raises:
        PromotionRefusedError: they are gone, or have another digest.

    """
    what = f"version {version.version} of {version.name}"
    place = urlparse(str(version.source))
    if place.scheme in ("", "file"):
        folder = Path(unquote(place.path))
        if not folder.is_dir():
            raise PromotionRefusedError(f"{what}: its weights are gone from {folder}; promote a variant anew")
        require_digest(folder, version.tags.get("digest", ""), what)
    elif not client.list_artifacts(version.run_id, WEIGHTS):
        raise PromotionRefusedError(f"{what}: its weights are gone from {version.source}; promote a variant anew")


def require_digest(folder: Path, digest: str, what: str) -> None:
    """Check that a folder has this digest.

    Raises:
        PromotionRefusedError: it has another.

    """
    found = checkpoint_digest(folder)
    if found != digest:
        raise PromotionRefusedError(
            f"{what} has changed since it was measured ({found[:12]}, measured was {digest[:12]}): run again"
        )


def champion_version(client: MlflowClient, model: str, alias: str) -> ModelVersion | None:
    """The version that the alias points to, or None."""
    from mlflow.exceptions import MlflowException

    try:
        found: ModelVersion = client.get_model_version_by_alias(model, alias)
    except MlflowException:
        return None
    return found


def has_model(client: MlflowClient, model: str) -> bool:
    """Whether the registry knows this model."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(model)
    except MlflowException:
        return False
    return True

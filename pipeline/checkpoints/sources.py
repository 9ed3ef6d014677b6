"""The base checkpoint of a run, as a folder in Hugging Face form with its digest."""

from __future__ import annotations

import os
from pathlib import Path

from core.errors import AssetError
from pipeline.checkpoints.facts import facts_from_folder, facts_from_shape
from pipeline.config import ModelConfig
from pipeline.types import ModelFacts

OFFLINE_DEFAULT = "model=smollm2-135m-q4_1 suite=small need no hub"
HUB_FILES = ["*.safetensors", "*.json", "tokenizer*", "*.model", "*.jinja"]
HUB_TIMEOUT_S = 8.0


def model_facts(model: ModelConfig) -> ModelFacts:
    """Facts of the configured model: from its folder where there is one, else from the configured shape."""
    if model.path:
        return facts_from_folder(model.name, Path(model.path))
    return facts_from_shape(model.name, model.shape)


def hub_folder(repo: str, revision: str | None) -> Path:
    """The hub repository's snapshot, from the local hub cache or from the hub.

    Raises:
        AssetError: neither has it; names what the hub said and the offline default.

    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=HUB_FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    require_hub(repo)
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, OSError) as error:
        raise AssetError(
            f"the hub refused {repo}: {str(error).splitlines()[0]}\n"
            f"  -> for a gated model accept its license on the hub, then `hf auth login`\n  -> {OFFLINE_DEFAULT}"
        ) from error


def require_hub(what: str) -> None:
    """Check that the Hugging Face hub answers.

    Raises:
        AssetError: it does not; names the offline default.

    """
    import httpx

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    reason = ""
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        reason = "HF_HUB_OFFLINE=1 is set"
    else:
        try:
            httpx.head(endpoint, timeout=HUB_TIMEOUT_S)
        except httpx.HTTPError as error:
            reason = f"{endpoint} does not answer ({type(error).__name__})"
    if reason:
        raise AssetError(
            f"'{what}' comes from the Hugging Face hub, and there is no access to it: {reason}\n"
            f"  -> {OFFLINE_DEFAULT}\n  -> model.path=/a/local/folder\n"
            "  -> model.weights=random measures this shape's speed, memory and price without its weights"
        )

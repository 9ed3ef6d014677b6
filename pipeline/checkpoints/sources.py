"""The base checkpoint of a run, as a folder in Hugging Face form with its digest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


def hub_commit(repo: str, revision: str | None, *, is_online: bool) -> str | None:
    """The commit of a hub repository: what this machine's hub cache has, else what the hub says.

    None where neither is asked (`is_online=False`) or the cache has nothing.

    Raises:
        AssetError: the hub is needed and does not answer, or refuses.

    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        cached = snapshot_download(repo, revision=revision, allow_patterns=HUB_FILES, local_files_only=True)
        return Path(cached).name
    except LocalEntryNotFoundError:
        if not is_online:
            return None
    require_hub(repo)
    with hub_refusals(repo):
        return str(HfApi().model_info(repo, revision=revision, timeout=HUB_TIMEOUT_S).sha)


def download(repo: str, commit: str | None) -> Path:
    """The repository's snapshot in the hub's cache on this machine, downloaded where it is not there.

    Raises:
        AssetError: the hub does not answer, or refuses; names what it said and the offline default.

    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with suppress(LocalEntryNotFoundError):
        return Path(snapshot_download(repo, revision=commit, allow_patterns=HUB_FILES, local_files_only=True))
    require_hub(repo)
    with hub_refusals(repo):
        return Path(snapshot_download(repo, revision=commit, allow_patterns=HUB_FILES))


@contextmanager
def hub_refusals(repo: str) -> Iterator[None]:
    """The hub's refusals as errors that name the way out.

    Raises:
        AssetError: the block met one.

    """
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
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

"""Push a finished artifact folder to the Hugging Face hub: `publish.hub=owner/name`.

The repository is private unless `publish.private=false`; one that exists already keeps its visibility, and a public one
is refused where a private one was asked for. The token comes from the environment variable HF_TOKEN alone, never from
the configuration, a login that was stored earlier, or the command line, and no message repeats it.

    HF_TOKEN=... python -m pipeline model=smollm2-135m-q4_1 quant=int8 publish.hub=owner/name
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from core.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*")
MAX_NAME = 96
NEEDED = ("config.json", "README.md", "manifest.json")
CARD = "README.md"


class PublishError(UserError):
    """The artifact could not be put on the hub: the message says why, and what has been done so far."""


class RepoFacts(Protocol):
    """What we need of `huggingface_hub.ModelInfo`."""

    @property
    def private(self) -> bool | None:
        """Whether only its owner sees it."""


class Commit(Protocol):
    """What we need of `huggingface_hub.CommitInfo`."""

    @property
    def oid(self) -> str:
        """The commit's hash."""


class HubApi(Protocol):
    """What we need of `huggingface_hub.HfApi`."""

    endpoint: str

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> object:
        """Make the repository, if it is not there."""

    def repo_info(self, repo_id: str) -> RepoFacts:
        """Facts of the repository; `private` among them."""

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str
    ) -> Commit:
        """One commit with the named files of a folder."""

    def upload_file(self, *, path_or_fileobj: bytes, path_in_repo: str, repo_id: str, commit_message: str) -> object:
        """One commit with one file."""


@dataclass(frozen=True)
class Published:
    """What was put where."""

    url: str
    commit: str
    """Commit of the weights; the card may follow in one of its own."""
    num_files: int
    num_bytes: int


def publish(
    folder: Path, repo: str, private: bool = True, api: HubApi | None = None, *, card: str | None = None
) -> Published:
    """Upload a finished artifact folder.

    Args:
        folder: a Hugging Face folder with its README.md and manifest.json.
        repo: `owner/name` on the hub.
        private: whether the repository is made private; True refuses one that is public already.
        api: the hub; None takes the real one, with the token in HF_TOKEN.
        card: a model card to upload instead of the folder's own README.md (with quality figures, for example).

    Raises:
        PublishError: no token, a name that cannot be one, an unfinished folder, no connection, or the hub refused.

    """
    check_name(repo)
    files = [(name, size) for name, size in listing(folder) if card is None or name != CARD]
    hub = api or hub_api()
    done = "nothing was uploaded"
    try:
        hub.create_repo(repo, private=private, exist_ok=True)
        done = f"the repository {repo} is there, and nothing was uploaded"
        if private and hub.repo_info(repo).private is False:
            raise PublishError(
                f"publish.hub={repo}: this repository is public, publish.private=true asks for a private one; {done}\n"
                "  -> publish.private=false\n  -> another name"
            )
        commit = hub.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=[name for name, _ in files],
            commit_message="Upload the compressed checkpoint and its manifest",
        )
        done = f"the weights are in {repo}, the model card is not"
        if card is not None:
            content = card.encode()
            hub.upload_file(
                path_or_fileobj=content, path_in_repo=CARD, repo_id=repo, commit_message="Update the model card"
            )
            files.append((CARD, len(content)))
    except Exception as error:
        reason = why_refused(error, repo, hub.endpoint)
        if reason is None:
            raise
        raise PublishError(f"publish.hub={repo}: {reason}\n  {done}") from error
    return Published(f"{hub.endpoint}/{repo}", str(commit.oid), len(files), sum(size for _, size in files))


def listing(folder: Path) -> list[tuple[str, int]]:
    """The files that would be uploaded, with their bytes; hidden ones stay.

    Raises:
        PublishError: the folder is not a finished artifact.

    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    names = [path.relative_to(folder) for path in paths]
    files = [
        (name.as_posix(), path.stat().st_size)
        for name, path in zip(names, paths, strict=True)
        if not any(part.startswith(".") for part in name.parts)
    ]
    found = {name for name, _ in files}
    missing = [name for name in NEEDED if name not in found]
    if not any(name.endswith(".safetensors") for name in found):
        missing.append("*.safetensors")
    if missing:
        raise PublishError(
            f"{folder} is not a finished artifact, it lacks {', '.join(missing)}: run the pipeline again"
        )
    return files


def name_problem(repo: str) -> str | None:
    """What is wrong with a repository's name by the hub's rules; None where it is a good one."""
    bad = not NAME.fullmatch(repo) or len(repo) > MAX_NAME or "--" in repo or ".." in repo
    if not bad and not repo.endswith((".git", ".", "-")):
        return None
    return (
        f"{repo!r} is not a repository name; write owner/name, with letters, digits, '-', '_' and '.', "
        f"at most {MAX_NAME} characters, without '--' and '..'"
    )


def check_name(repo: str) -> None:
    """Check a repository's name by the hub's rules.

    Raises:
        PublishError: it is not one; says what a name looks like.

    """
    wrong = name_problem(repo)
    if wrong is not None:
        raise PublishError(f"publish.hub: {wrong}")


def hub_api() -> HubApi:
    """The real hub with the token of HF_TOKEN.

    Raises:
        PublishError: HF_TOKEN is not set.

    """
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise PublishError(
            "publish.hub: the environment variable HF_TOKEN is not set; make a token with write access on "
            "https://huggingface.co/settings/tokens and `export HF_TOKEN=...`"
        )
    from huggingface_hub import HfApi

    api: HubApi = HfApi(token=token)
    return api


def why_refused(error: Exception, repo: str, endpoint: str) -> str | None:
    """The reason behind an error of the hub's client, with the way out; None where it is not one of the hub's."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE=1 is set, so the hub cannot be asked\n  -> unset HF_HUB_OFFLINE"
    if isinstance(error, HFValidationError):
        return f"not a repository name: {first_line(error)}"
    if isinstance(error, HfHubHTTPError):
        return answer_reason(error.response.status_code, error.server_message, repo, endpoint)
    if isinstance(error, (httpx.HTTPError, ConnectionError, TimeoutError)):
        return (
            f"{endpoint} does not answer ({type(error).__name__}): check the connection and HF_ENDPOINT, then run again"
        )
    return None


def answer_reason(status: int, answer: str | None, repo: str, endpoint: str) -> str:
    """What a refusal by the hub means."""
    owner = repo.partition("/")[0]
    server_error = 500
    meanings = {
        400: "the hub could not use the request",
        401: "the hub does not know the token in HF_TOKEN: wrong, expired or revoked\n"
        "  -> make one with write access on https://huggingface.co/settings/tokens",
        403: f"the token in HF_TOKEN may not write to '{owner}'\n"
        f"  -> give the token write access to '{owner}'\n  -> publish.hub=YOUR_NAME/{repo.partition('/')[2]}",
        404: f"the hub knows no '{owner}', or hides it from the token in HF_TOKEN\n  -> check the owner's name",
        413: "the hub refused a file for its size",
        429: "the hub asks to slow down\n  -> run again later, finished stages are kept",
    }
    meaning = meanings.get(status, "the hub refused")
    if status >= server_error:
        meaning = "the hub has an error of its own\n  -> run again later, finished stages are kept"
    detail = f": {first_line(answer)}" if answer else ""
    first, _, ways_out = meaning.partition("\n")
    return f"{first} (status {status} from {endpoint}{detail})" + (f"\n{ways_out}" if ways_out else "")


def first_line(value: object) -> str:
    """The first line of a message."""
    lines: Sequence[str] = str(value).strip().splitlines()
    return lines[0] if lines else ""

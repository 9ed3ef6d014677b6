import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.checkpoints.publish import PublishError, listing, name_problem, publish

TOKEN = "hf_notarealtoken"
FILES = {"config.json": "{}", "README.md": "card", "manifest.json": "{}", "model.safetensors": "weights"}


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_text(content)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "lock").write_text("x")
    (folder / ".hidden").write_text("x")
    return folder


@dataclass
class FakeHub:
    """Remembers what it was asked; `is_private` is the repository's visibility."""

    endpoint: str = "https://hub.example"
    is_private: bool | None = None
    calls: list[tuple[str, dict]] = field(default_factory=list)
    error: Exception | None = None

    def create_repo(self, repo_id, *, private, exist_ok):
        self.calls.append(("create", {"repo": repo_id, "private": private, "exist_ok": exist_ok}))
        if self.is_private is None:
            self.is_private = private

    def repo_info(self, repo_id):
        return SimpleNamespace(private=self.is_private)

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, commit_message):
        if self.error is not None:
            raise self.error
        self.calls.append(("folder", {"repo": repo_id, "files": allow_patterns}))
        return SimpleNamespace(oid="f00d")

    def upload_file(self, *, path_or_fileobj, path_in_repo, repo_id, commit_message):
        self.calls.append(("file", {"repo": repo_id, "name": path_in_repo, "content": path_or_fileobj}))


def test_a_finished_folder_is_uploaded_privately(artifact: Path) -> None:
    hub = FakeHub()
    done = publish(artifact, "owner/name", api=hub)
    assert (done.url, done.commit, done.num_files) == ("https://hub.example/owner/name", "f00d", 4)
    assert done.num_bytes == sum(map(len, FILES.values()))
    assert hub.calls == [
        ("create", {"repo": "owner/name", "private": True, "exist_ok": True}),
        ("folder", {"repo": "owner/name", "files": sorted(FILES)}),
    ]


def test_a_card_with_figures_replaces_the_folders_own(artifact: Path) -> None:
    hub = FakeHub()
    done = publish(artifact, "owner/name", private=False, api=hub, card="with figures")
    assert hub.calls[0][1]["private"] is False
    assert hub.calls[1][1]["files"] == ["config.json", "manifest.json", "model.safetensors"]
    assert hub.calls[2] == ("file", {"repo": "owner/name", "name": "README.md", "content": b"with figures"})
    assert done.num_files == 4
    assert (artifact / "README.md").read_text() == "card"


def test_a_public_repository_never_gets_what_should_be_private(artifact: Path) -> None:
    hub = FakeHub(is_private=False)
    with pytest.raises(
        PublishError, match=r"(?s)this repository is public.*nothing was uploaded.*publish\.private=false"
    ):
        publish(artifact, "owner/name", api=hub)
    assert [name for name, _ in hub.calls] == ["create"]
    publish(artifact, "owner/name", private=False, api=hub)
    assert hub.calls[-1][0] == "folder"


@pytest.mark.parametrize(
    "name",
    ["", "name", "owner/", "/name", "a/b/c", "owner/na me", "o--x/n", "o/n..m", "o/n.git", "o/" + "n" * 96, "o/n-"],
)
def test_a_bad_name_is_refused_before_anything_is_asked(name: str, artifact: Path) -> None:
    hub = FakeHub()
    with pytest.raises(PublishError, match="write owner/name"):
        publish(artifact, name, api=hub)
    assert hub.calls == []


@pytest.mark.parametrize("name", ["o/n", "Owner-1/my_model.v2-int8", "0/0"])
def test_good_names_satisfy_the_hubs_client_too(name: str) -> None:
    from huggingface_hub.utils import validate_repo_id

    assert name_problem(name) is None
    validate_repo_id(name)


@pytest.mark.parametrize("missing", FILES)
def test_an_unfinished_folder_is_refused(missing: str, artifact: Path) -> None:
    (artifact / missing).unlink()
    expected = r"\*\.safetensors" if missing.endswith("safetensors") else missing
    with pytest.raises(PublishError, match=f"lacks {expected}: run the pipeline again"):
        listing(artifact)
    with pytest.raises(PublishError, match=r"lacks config\.json"):
        listing(artifact / "nowhere")


def test_the_listing_has_every_file_with_its_bytes(artifact: Path) -> None:
    (artifact / ".hidden").write_text("x")
    assert listing(artifact) == [("README.md", 4), ("config.json", 2), ("manifest.json", 2), ("model.safetensors", 7)]


@pytest.mark.parametrize("value", [None, "", "  "])
def test_no_token_is_said_at_once(value: str | None, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("HF_TOKEN", value)
    with pytest.raises(PublishError, match="HF_TOKEN is not set"):
        publish(artifact, "owner/name")


def test_a_defect_of_ours_keeps_its_traceback(artifact: Path) -> None:
    with pytest.raises(KeyError):
        publish(artifact, "owner/name", api=FakeHub(error=KeyError("ours")))


@contextmanager
def server(answers: dict[str, tuple[int, dict]]) -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """A local hub: path -> status and JSON body, `*` for all others. Yields its URL and what it was asked."""
    asked: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append((f"{self.command} {self.path}", self.headers.get("Authorization")))
            status, body = answers.get(self.path, answers["*"])
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_HEAD = answer  # noqa: N815

        def log_message(self, *args) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.server_port}", asked
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


def real_api(url: str):
    from huggingface_hub import HfApi

    return HfApi(endpoint=url, token=TOKEN)


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real client, as if the hub could be asked."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


@pytest.mark.parametrize(
    ("status", "said", "expected"),
    [
        (401, "Invalid username or password.", r"does not know the token in HF_TOKEN.*status 401.*write access"),
        (403, "Forbidden", r"may not write to 'owner'.*status 403.*publish\.hub=YOUR_NAME/name"),
        (404, "Not found", r"knows no 'owner'.*status 404"),
        (500, "Internal Error", r"an error of its own.*status 500.*run again later"),
        (429, "Too many", r"asks to slow down.*status 429"),
        (418, "I am a teapot", r"the hub refused.*status 418.*I am a teapot"),
    ],
)
@pytest.mark.usefixtures("online")
def test_the_real_client_before_a_hub_that_refuses(status: int, said: str, expected: str, artifact: Path) -> None:
    with (
        server({"*": (status, {"error": said})}) as (url, asked),
        pytest.raises(PublishError, match=f"(?s){expected}") as caught,
    ):
        publish(artifact, "owner/name", api=real_api(url))
    message = str(caught.value)
    assert "nothing was uploaded" in message
    assert url in message
    assert TOKEN not in message
    assert asked[0] == ("POST /api/repos/create", f"Bearer {TOKEN}")
    assert not any("preupload" in path or "commit" in path for path, _ in asked)


@pytest.mark.usefixtures("online")
def test_the_real_client_refused_while_it_uploads(artifact: Path) -> None:
    answers = {
        "/api/repos/create": (200, {"url": "http://127.0.0.1/owner/name"}),
        "/api/models/owner/name": (200, {"id": "owner/name", "private": True, "siblings": []}),
        "*": (403, {"error": "storage is full"}),
    }
    refused = r"(?s)status 403.*storage is full.*repository owner/name is there"
    with server(answers) as (url, asked), pytest.raises(PublishError, match=refused):
        publish(artifact, "owner/name", api=real_api(url))
    assert len(asked) > 2


@pytest.mark.usefixtures("online")
def test_the_real_client_finds_a_public_repository(artifact: Path) -> None:
    answers = {
        "/api/models/owner/name": (200, {"id": "owner/name", "private": False, "siblings": []}),
        "*": (409, {"error": "You already created this model repo", "url": "http://127.0.0.1/owner/name"}),
    }
    with server(answers) as (url, asked), pytest.raises(PublishError, match="this repository is public"):
        publish(artifact, "owner/name", api=real_api(url))
    assert [path for path, _ in asked] == ["POST /api/repos/create", "GET /api/models/owner/name"]


@pytest.mark.usefixtures("online")
def test_the_real_client_without_a_connection(artifact: Path) -> None:
    with server({"*": (200, {})}) as (url, _):
        pass  # the port is free again: connections are refused
    with pytest.raises(PublishError, match=rf"(?s){url} does not answer \(ConnectError\).*HF_ENDPOINT.*nothing was"):
        publish(artifact, "owner/name", api=real_api(url))


def test_offline_mode_is_named(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "is_offline_mode", lambda: True)
    with pytest.raises(PublishError, match=r"HF_HUB_OFFLINE=1 is set"):
        publish(artifact, "owner/name", api=real_api("http://127.0.0.1:9"))

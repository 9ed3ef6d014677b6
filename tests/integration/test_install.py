"""An installed product: the wheel and the sdist work outside the checkout, and find every file that they need.

Built once from the checkout; from then on nothing reads it: commands run in an empty folder, without PYTHONPATH. Two
installations are tried: one with all that a run needs (the packages of this environment, on the path of a fresh one),
one with the dependencies of the extra `finops` alone, from the package index.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from core.environments import folder_of, home

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.integration
ROOMS = ("core", "evals", "finops", "pipeline")
DATA_FILES = """
import json, sys
from importlib import metadata

from core.environments import CODE, DATA, ROOT, folder_of, lock_of
from evals.load.trace import read_trace, trace_path
from finops.ledger.database import Database
from finops.pricing.prices import CATALOG
from pipeline.cli.compose import choices
from pipeline.report.frontier_page import TEMPLATE
from pipeline.serve.engine import PLUGIN

import yaml

trace = trace_path(yaml.safe_load((DATA / "conf" / "load" / "trace.yaml").read_text())["trace"]["path"])
Database("sqlite:///ledger.db")  # runs the migrations
plugins = [one for found in metadata.distributions(path=[str(PLUGIN)]) for one in found.entry_points]
sys.path.append(str(PLUGIN))
print(json.dumps({
    "paths": [str(one) for one in (CODE, DATA, lock_of("serve"), lock_of("pipeline"), trace, CATALOG, TEMPLATE)],
    "root": str(ROOT),
    "serving": folder_of("serve").name,
    "choices": choices(),
    "num_requests": len(read_trace(trace)),
    "plugins": [f"{one.group}: {one.name}" for one in plugins],
    "plugin_loads": [callable(one.load()) for one in plugins],
    "template": "__DATA__" in TEMPLATE.read_text(),
}))
"""


@dataclass(frozen=True)
class Installed:
    """A fresh environment with the wheel in it, and an empty folder to work in."""

    python: Path
    work: Path
    variables: dict[str, str] = field(default_factory=dict)

    def run(self, *command: str, code: int = 0, **variables: str) -> str:
        """Run a command outside the checkout; its standard output, or its errors where one is expected."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PARSIMONY_", "PYTHON"))}
        program = self.python.parent / command[0] if command[0] == "parsimony" else self.python
        arguments = command[1:] if command[0] in ("parsimony", "python") else command
        done = subprocess.run(
            [program, *arguments], cwd=self.work, capture_output=True, text=True, check=False, timeout=120,
            env={**environment, **self.variables, **variables},
        )  # fmt: skip
        assert done.returncode == code, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stderr if code else done.stdout


@pytest.fixture(scope="module")
def uv() -> str:
    """The uv that the product's own scripts use; they fetch it where there is none."""
    program = 'source scripts/environment.sh; find_python; find_uv; echo "$uv"'
    done = subprocess.run(["bash", "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def built(uv: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel made from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([uv, "build", "-q", "--out-dir", folder, ROOT], check=True, timeout=120)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return next(built.glob("parsimony-*.whl"))


def install(uv: str, folder: Path, *requirements: str | Path) -> Path:
    """A fresh environment with these installed; its interpreter."""
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, folder / "env"], check=True, timeout=60)
    python = folder / "env" / "bin" / "python"
    subprocess.run([uv, "pip", "install", "-q", "--python", python, *requirements], check=True, timeout=300)
    return python


@pytest.fixture(scope="module")
def everything(uv: str, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel over the packages of the pipeline environment."""
    folder = tmp_path_factory.mktemp("everything")
    python = install(uv, folder, "--no-deps", wheel)
    site = next(folder.glob("env/lib/python3*/site-packages"))
    packages = Path(sys.prefix).joinpath(*site.relative_to(folder / "env").parts)
    (site / "pipeline-environment.pth").write_text(f"{packages}\n")
    (folder / "work").mkdir()
    return Installed(python, folder / "work", {"PARSIMONY_HOME": str(home())})


@pytest.fixture(scope="module")
def ledger_only(uv: str, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel with the extra `finops`, from the package index, in the locked versions."""
    folder = tmp_path_factory.mktemp("ledger-only")
    lock = ROOT / "requirements" / "pipeline-cpu.txt"
    python = install(uv, folder, "--constraint", lock, f"parsimony[finops] @ {wheel.as_uri()}")
    (folder / "work").mkdir()
    return Installed(python, folder / "work", {"PARSIMONY_HOME": str(folder / "home")})


def contents(wheel: Path) -> dict[str, str]:
    """Name -> SHA-256 of each file in a wheel, but for its list of files."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            name: hashlib.sha256(archive.read(name)).hexdigest()
            for name in archive.namelist()
            if not name.endswith(".dist-info/RECORD")
        }


def test_the_sdist_gives_the_wheel_that_the_checkout_gives(uv: str, wheel: Path, tmp_path: Path) -> None:
    subprocess.run([uv, "build", "-q", "--wheel", "--out-dir", tmp_path, ROOT], check=True, timeout=120)
    assert contents(next(tmp_path.glob("*.whl"))) == contents(wheel)


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    expected = {
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected |= {f"core/_data/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*") if path.is_file()}
    outside = [*(ROOT / "requirements").glob("*-c[pu][ud]*.txt"), ROOT / "requirements" / "overrides.txt"]
    outside += [ROOT / "requirements" / "focus.txt", ROOT / "scripts" / "environment.sh"]
    expected |= {f"core/_data/{path.relative_to(ROOT)}" for path in outside}
    found = {name for name in contents(wheel) if not name.startswith("parsimony-")}
    assert found == expected
    metadata = {name.partition("/")[2] for name in contents(wheel) if name.startswith("parsimony-")}
    assert metadata == {"METADATA", "WHEEL", "entry_points.txt", "licenses/LICENSE"}


def test_the_help_and_a_dry_run_work_from_an_empty_folder(everything: Installed) -> None:
    assert "quant" in everything.run("parsimony", "--help")
    shown = everything.run("parsimony", "quant=int8", "dry_run=true")
    assert "Variants none (baseline), int8" in shown
    assert shown.endswith("dry run: nothing was loaded or started\n")


def test_every_data_file_is_the_installed_one(everything: Installed) -> None:
    found = json.loads(everything.run("-c", DATA_FILES))
    site = str(everything.python.parent.parent / "lib")
    assert [path for path in found["paths"] if not path.startswith(site) or not Path(path).exists()] == []
    assert found["root"] == str(everything.work)
    assert found["serving"] == folder_of("serve").name  # the same lock, hence the environment that is built already
    assert {"int8", "gptq", "none"} <= set(found["choices"]["quant"])
    assert found["num_requests"] == 600
    assert found["plugins"] == ["vllm.general_plugins: parsimony"]
    assert found["plugin_loads"] == [True]
    assert found["template"]


def test_the_tools_versions_are_seen_where_they_are_imported_from(everything: Installed) -> None:
    program = "import sys, pathlib, core.environments as e; print(e.versions(pathlib.Path(sys.executable), 'torch'))"
    assert "'torch': '2." in everything.run("-c", program)


def test_an_environment_is_built_by_the_packaged_script(
    uv: str, wheel: Path, everything: Installed, tmp_path: Path
) -> None:
    """A small lock in the place of vLLM's: its files are checked, it is built once, and another lock builds another."""
    python = install(uv, tmp_path, "--no-deps", wheel)
    lock = next(tmp_path.glob("env/lib/python3*/site-packages")) / "core/_data/requirements/serve-cpu.txt"
    path = f"{Path(uv).parent}:{os.environ['PATH']}"  # else it fetches a uv of its own
    own = {"PARSIMONY_HOME": str(tmp_path / "home"), "PARSIMONY_FLAVOUR": "cpu", "PATH": path}
    one = Installed(python, tmp_path, own)
    build = ("-m", "core.environments", "build", "serve")

    lock.unlink()  # uv links files into its cache: a new file, not a new content
    lock.write_text(f"iniconfig==2.3.1 --hash=sha256:{'0' * 64}\n")
    refused = one.run(*build, code=1)
    assert "Hash mismatch" in refused
    assert f"the environment 'serve' could not be built from {lock}; see above" in refused
    assert not list((tmp_path / "home" / "envs").glob("*/.complete"))

    shutil.copy(ROOT / "requirements" / "test.txt", lock)
    folder = Path(one.run(*build).strip())
    assert folder.parent == tmp_path / "home" / "envs"
    assert list(folder.glob("lib/python3*/site-packages/pytest"))
    made_at = (folder / ".complete").stat().st_mtime_ns
    assert Path(one.run(*build).strip()) == folder
    assert (folder / ".complete").stat().st_mtime_ns == made_at

    # And the real one is found, not built again.
    serving = everything.run(*build).strip()
    assert serving == str(folder_of("serve"))
    program = "from core.environments import serving_python; print(serving_python())"
    assert everything.run("-c", program).strip() == f"{serving}/bin/python"


def test_the_ledger_needs_no_torch(ledger_only: Installed) -> None:
    names = {path.name for path in ledger_only.python.parent.parent.glob("lib/python3*/site-packages/*")}
    assert not {"torch", "transformers", "mlflow", "llmcompressor"} & names
    assert "quant" in ledger_only.run("parsimony", "--help")
    assert "dry run: nothing was loaded or started" in ledger_only.run("parsimony", "quant=int8", "dry_run=true")
    assert "usage" in ledger_only.run("parsimony", "report", "--help")
    assert "h100" in ledger_only.run("parsimony", "prices", "list").lower()


def test_a_ledger_is_written_below_the_current_folder(ledger_only: Installed) -> None:
    ledger_only.run("parsimony", "budgets", "set", "research", "--limit-usd", "100")
    assert (ledger_only.work / "mlruns" / "finops.db").is_file()
    assert "research" in ledger_only.run("parsimony", "budgets", "list")
    ledger_only.run("parsimony", "report", "--format", "html", "--output", "spend.html")
    assert "<html" in (ledger_only.work / "spend.html").read_text()


def test_a_run_names_what_is_missing_and_the_way_out(ledger_only: Installed) -> None:
    told = ledger_only.run("parsimony", "quant=int8", code=2)
    assert told.startswith("error: the serving environment")
    assert f"-> {ledger_only.python} -m core.environments build serve" in told
    # With a serving environment, the next thing that is missing has its own way out.
    told = ledger_only.run("parsimony", "quant=int8", code=2, PARSIMONY_SERVE_PYTHON=sys.executable)
    needed = "compressed-tensors, llmcompressor, lm-eval, mlflow, pip, tokenizers, torch, transformers"
    assert told == f"error: this needs packages that are not installed: {needed}\n  -> pip install 'parsimony[all]'\n"

"""What the code imports is declared, what is declared is used, and the locks are what was declared, with hashes."""

import ast
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.compress.registry import known_methods, method
from pipeline.plan.resolve import RUN_PACKAGES

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("core", "finops", "evals", "pipeline")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCKS = sorted(path for path in (ROOT / "requirements").glob("*.txt") if path.name != "overrides.txt")

DISTRIBUTION = {"hydra": "hydra-core", "yaml": "pyyaml"}
"""Import name -> distribution, where the two differ by more than a dash."""
SERVING = {"vllm"}
"""Imported in the serving environment only, which has its own lock."""
NOT_IMPORTED = {
    "accelerate": "started as `accelerate launch`; transformers asks for it",
    "bitsandbytes": "loaded by transformers",
    "optimum": "loaded by transformers for GPTQ checkpoints",
    "pip": "started as `python -m pip download`",
    "psycopg": "loaded by SQLAlchemy for postgresql:// URLs",
}
"""Declared, and never imported by name: why."""


@cache
def imported(*rooms: str) -> dict[str, str]:
    """Distribution of every third-party import -> a file that imports it."""
    found: dict[str, str] = {}
    for room in rooms:
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                    names = [node.module]
                for name in {name.partition(".")[0] for name in names} - set(ROOMS) - SERVING:
                    if name not in sys.stdlib_module_names:
                        found.setdefault(canonicalize_name(DISTRIBUTION.get(name, name)), str(path.relative_to(ROOT)))
    return found


def declared(*extras: str) -> dict[str, Requirement]:
    """The base dependencies and those of some extras, with what these extras include."""
    requirements = [Requirement(text) for text in PROJECT["dependencies"]]
    pending, seen = list(extras), set()
    while pending:
        extra = pending.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for requirement in map(Requirement, EXTRAS[extra]):
            if requirement.name == PROJECT["name"]:
                pending += requirement.extras
            else:
                requirements.append(requirement)
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def pins(lock: Path) -> dict[str, str]:
    """Distribution -> version of a lock."""
    found = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?==([^ \\;]+)", lock.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def test_every_import_is_declared() -> None:
    missing = {name: where for name, where in imported(*ROOMS).items() if name not in declared("all")}
    assert not missing


def test_the_ledger_needs_the_base_and_its_extra_only() -> None:
    missing = {name: where for name, where in imported("core", "finops").items() if name not in declared("finops")}
    assert not missing
    assert not {"torch", "mlflow", "transformers", "vllm"} & declared("finops").keys()


def test_everything_declared_is_used() -> None:
    used = imported(*ROOMS).keys() | NOT_IMPORTED.keys()
    assert declared("all").keys() <= used
    assert not NOT_IMPORTED.keys() & imported(*ROOMS).keys()  # an import makes the reason wrong


def test_all_means_all() -> None:
    assert declared("all") == declared(*EXTRAS)


@pytest.mark.parametrize("lock", ["pipeline-cpu", "pipeline-cuda"])
def test_the_lock_lies_within_the_declared_bounds(lock: str) -> None:
    found = pins(ROOT / "requirements" / f"{lock}.txt")
    for name, requirement in declared("all").items():
        assert [one.operator for one in requirement.specifier] == [">="], f"{name}: a lower bound, and nothing else"
        assert requirement.specifier.contains(found[name]), f"{name}: {found[name]} is locked"


@pytest.mark.parametrize("lock", ["pipeline-cpu", "pipeline-cuda"])
def test_what_the_environment_is_made_of_is_what_is_declared(lock: str) -> None:
    source = [line.partition("#")[0].strip() for line in (ROOT / "requirements/pipeline.in").read_text().splitlines()]
    asked = {canonicalize_name(Requirement(line).name) for line in source if line}
    assert asked <= declared("all").keys()  # the environment holds nothing that an installed product would lack


@pytest.mark.parametrize("lock", ["pipeline-cpu", "pipeline-cuda"])
def test_the_lock_holds_what_a_run_and_each_method_check_for(lock: str) -> None:
    tools = {tool for name in known_methods() for tool in method(name).tools}
    assert {canonicalize_name(name) for name in {*tools, *RUN_PACKAGES}} <= pins(
        ROOT / "requirements" / f"{lock}.txt"
    ).keys()


def test_the_tests_tools_are_not_in_the_products_environments() -> None:
    for name in ("pipeline-cpu", "pipeline-cuda"):
        assert not {"pytest", "hypothesis", "pytest-xdist"} & pins(ROOT / "requirements" / f"{name}.txt").keys()
    shared = pins(ROOT / "requirements/test.txt").items() & pins(ROOT / "requirements/pipeline-cpu.txt").items()
    both = pins(ROOT / "requirements/test.txt").keys() & pins(ROOT / "requirements/pipeline-cpu.txt").keys()
    assert {name for name, _ in shared} == both  # one version of what both need


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_every_locked_file_is_known_by_its_hash(lock: Path) -> None:
    entries = re.split(r"^(?=[A-Za-z0-9])", lock.read_text(), flags=re.MULTILINE)[1:]
    assert len(entries) == len(pins(lock)) > 5
    for entry in entries:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry.splitlines()[0]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_no_lock_names_a_path_or_a_host(lock: Path) -> None:
    assert not re.search(r"://|--(extra-)?index|--find-links|file:|^/|@ ", lock.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", ["pipeline", "serve"])
def test_the_cpu_locks_know_torch_for_each_supported_python(name: str) -> None:
    entry = (ROOT / "requirements" / f"{name}-cpu.txt").read_text().partition("\ntorch==")[2].partition("    # via")[0]
    assert "+cpu" in entry
    assert len(re.findall("--hash=", entry)) >= 3

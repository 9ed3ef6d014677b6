"""The rooms and the way imports run between them: gateway -> pipeline -> evals -> finops -> core."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ORDER = ("core", "finops", "evals", "pipeline")
PURE = (
    "pipeline.plan.plan",
    "evals.decide.decide",
    "evals.decide.task_gates",
    "pipeline.record.metrics",
    "evals.types",
    "evals.cost.token_cost",
    "evals.stats",
    "evals.gate.gate",
    "evals.gate.betting",
    "evals.gate.ordering",
    "evals.gate.sequential",
    "evals.gate.divergence",
    "evals.decide.frontier",
    "evals.load.search",
    "evals.cost.attribution",
    "evals.load.summary",
    "evals.load.scenario",
    "evals.quality.embedded",
    "finops.money",
    "finops.ledger.charges",
    "finops.focus.columns",
    "core.svg",
)
FORBIDDEN_IN_PURE = {"torch", "vllm", "mlflow", "redis", "time", "random", "subprocess"}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
    return names


@pytest.mark.parametrize("room", ORDER)
def test_imports_run_one_way(room: str) -> None:
    above = set(ORDER[ORDER.index(room) + 1 :])
    for path in (ROOT / room).rglob("*.py"):
        wrong = {name for name in imported(path) if name.split(".")[0] in above}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_have_no_effects(module: str) -> None:
    wrong = imported(ROOT / (module.replace(".", "/") + ".py")) & FORBIDDEN_IN_PURE
    assert not wrong, f"{module} imports {wrong}"


@pytest.mark.parametrize(
    "module", ["pipeline.__main__", "pipeline.plan.plan", "pipeline.compress.registry", "pipeline.promote", *PURE]
)
def test_planning_loads_no_heavy_library(module: str) -> None:
    program = (
        f"import sys, {module}; print([m for m in ('torch', 'transformers', 'mlflow', 'vllm') if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == "[]"

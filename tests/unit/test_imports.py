"""The rooms and the way imports run between them: gateway -> pipeline -> evals -> finops -> core."""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ORDER = ("core", "finops", "evals", "pipeline")
PURE = (
    "pipeline.plan.plan",
    "evals.decide.decide",
    "evals.decide.task_gates",
    "evals.decide.noise_floor",
    "pipeline.record.metrics",
    "evals.types",
    "evals.cost.token_cost",
    "evals.stats",
    "evals.gate.gate",
    "evals.gate.betting",
    "evals.gate.ordering",
    "evals.gate.sequential",
    "evals.gate.scores",
    "evals.gate.intervals",
    "evals.gate.levels",
    "evals.gate.population",
    "evals.gate.items_left",
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
KNOW_RUN_CONFIG = {"pipeline.config", "pipeline.run", "pipeline.tune", "pipeline.promote"}
PLANNERS = ("pipeline.cli.", "pipeline.plan.")
INSIDE_FUNCTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "pipeline.cli.run": (("pipeline.run",), "it loads SQLAlchemy: not for --help, nor for a mistake"),
}
"""Module -> our own modules that it imports inside functions, and why it must."""
FORBIDDEN_IN_PURE = {"torch", "vllm", "mlflow", "redis", "time", "random", "subprocess"}


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for room in ORDER
    for path in sorted((ROOT / room).rglob("*.py"))
}


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it: `from a import b` counts as `a.b` where that is a module."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            names |= submodules or {node.module}
    return names


def inside_functions(source: str) -> set[str]:
    """Our own modules that are imported inside functions; `if TYPE_CHECKING` is at the top of a file."""
    found: set[str] = set()
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.walk(function):
                names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                found.update(name for name in names if name.split(".")[0] in ORDER)
    return found


def names_in(source: str) -> set[str]:
    """Every name of the code; comments and texts do not count."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.string for token in tokens if token.type == tokenize.NAME}


def circles(graph: dict[str, set[str]]) -> list[str]:
    """One line for every circle that a depth-first walk meets."""
    found: list[str] = []
    done: set[str] = set()

    def walk(module: str, trail: list[str]) -> None:
        if module in trail:
            found.append(" -> ".join([*trail[trail.index(module) :], module]))
        elif module not in done:
            for target in sorted(graph[module]):
                walk(target, [*trail, module])
            done.add(module)

    for module in sorted(graph):
        walk(module, [])
    return found


@pytest.mark.parametrize("room", ORDER)
def test_imports_run_one_way(room: str) -> None:
    above = set(ORDER[ORDER.index(room) + 1 :])
    for path in (ROOT / room).rglob("*.py"):
        wrong = {name for name in imported(path) if name.split(".")[0] in above}
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_files_are_acyclic() -> None:
    """Imports inside functions and for type checking alone count as well."""
    graph = {module: (imported(path) & MODULES.keys()) - {module} for module, path in MODULES.items()}
    assert len(graph) > 150
    assert circles(graph) == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b -> c -> b"]


def test_our_own_imports_stand_at_the_top() -> None:
    found = {module: names for module, path in MODULES.items() if (names := inside_functions(path.read_text()))}
    assert found == {module: set(names) for module, (names, _) in INSIDE_FUNCTIONS.items()}


def test_an_import_inside_a_function_is_found() -> None:
    source = "from core import files\n\ndef f():\n    from pipeline.run import run\n    import evals.stats, torch\n"
    assert inside_functions(source) == {"pipeline.run", "evals.stats"}


def test_functions_take_the_configuration_group_that_they_read() -> None:
    """Only the command line, the plan and what runs it know the whole configuration."""
    knowing = {module for module, path in MODULES.items() if "RunConfig" in names_in(path.read_text())}
    outside = {module for module in knowing if module not in KNOW_RUN_CONFIG and not module.startswith(PLANNERS)}
    assert outside == set()
    assert knowing >= KNOW_RUN_CONFIG


def test_a_name_in_the_code_is_found_and_one_in_a_text_is_not() -> None:
    assert "RunConfig" in names_in("def f(config: RunConfig) -> None:\n    pass\n")
    assert "RunConfig" not in names_in('"""RunConfig."""  # RunConfig\n')


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


KNOW_TOO_MUCH = ("finops", "mlflow", "pipeline.billing", "pipeline.record", "pipeline.report", "core.console")


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline" / "stages").glob("*.py")), ids=lambda path: path.stem)
def test_stages_know_no_money_no_mlflow_and_no_console(path: Path) -> None:
    """Those listen to the store. `measure.py` is no stage: it puts the price beside what was measured."""
    known = {name for name in imported(path) if name.startswith(KNOW_TOO_MUCH)}
    assert known == ({"finops.pricing.prices"} if path.stem == "measure" else set())


def test_no_inner_module_is_a_command() -> None:
    """One command line; what else runs as a program is started by us: jobs, the supervisor, the load client."""
    programs = {name for name, path in MODULES.items() if '__name__ == "__main__"' in path.read_text()}
    assert programs == {
        "pipeline.__main__", "core.jobs", "core.supervise", "evals.load.client",
        "core.environments",  # builds an environment where the command line cannot start yet
    }  # fmt: skip

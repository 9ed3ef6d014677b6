"""The command line: every configuration file composes, every mistake has a message, every verb has a help text."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from core import console
from core.environments import set_defaults
from core.store import StageRef, StageResult
from evals.config import GateConfig
from evals.load.scenario import from_config
from evals.types import Decision, DecisionEvidence, Money
from pipeline.checkpoints.facts import facts_from_shape
from pipeline.cli.app import VERBS, dispatch, run_command, version
from pipeline.cli.compose import CONF, choices, command_config
from pipeline.compress import registry
from pipeline.plan.resolve import without_checkpoint
from pipeline.report.json_output import decision_json, rollback_json

ROOT = Path(__file__).resolve().parents[3]
set_defaults()


def run(*arguments: str, folder: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=folder, capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip


def message_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command line says of a mistake, in this process: one message, exit code 2."""
    code = run_command(dispatch, arguments)
    said = capsys.readouterr()
    assert code == 2, said
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err
    assert said.out == ""
    return said.err


CHOICES = [
    (group, name)
    for group, names in choices().items()
    for name in names
    if (group, name) != ("model", "local") and "???" not in (CONF / group / f"{name}.yaml").read_text()
]


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_composes_and_fits_the_schema(group: str, name: str) -> None:
    config = command_config([f"{group}={name}"])
    if group == "model":
        assert facts_from_shape(config.model.name, config.model.shape).num_parameters > 1e8
    if group == "quant":
        values = dict(config.quant)
        registry.method_args(values.pop("method"), values)
    if group == "load":
        assert from_config(config.load).name == name


@pytest.mark.parametrize("choice", ["external", "as-is"])
def test_an_external_checkpoint_leaves_the_baseline_as_it_was_named(choice: str, tmp_path: Path) -> None:
    path = f"model.path={tmp_path}"
    config = command_config(["model=smollm2-135m-q4_1", path, f"quant={choice}"])
    assert (config.model.name, config.model.source, config.model.path) == (
        "smollm2-135m-q4_1",
        "embedded",
        str(tmp_path),
    )
    baseline, elsewhere = without_checkpoint(config)
    assert (baseline.model.path, elsewhere) == (None, tmp_path)
    config = command_config(["model=smollm2-135m-q4_1", path, "quant=int8"])
    assert (config.model.name, config.model.source) == (tmp_path.name, "path")


@pytest.mark.parametrize("path", sorted(CONF.glob("*/*.yaml")), ids=str)
def test_every_choice_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("#"), f"{path} has no comment in its first line"
    name = yaml.safe_load(text).get("name")
    assert name in (None, "", path.stem) or path.parent.name in ("quant", "tracking"), f"{path} calls itself {name}"


MISTAKES = [
    (["quant", "int8"], "'quant': '=' is missing: quant=int8"),
    (["int8"], "'int8': '=' is missing: quant=int8"),
    (["promte"], "'promte': unknown verb; did you mean 'promote'?; verbs: run, plan, "),
    (["xyz"], "'xyz': unknown verb; verbs: run"),
    (["promote", "--rolback"], "promote --rolback: unknown option; did you mean '--rollback'?"),
    (["--mutlirun", "quant=int8"], "--mutlirun: unknown option; did you mean '--multirun'?"),
    (["report", "--fromat", "csv"], "report --fromat: unknown option; did you mean '--format'?"),
    (["budgets", "lst"], "budgets lst: unknown; did you mean 'list'?; known: set, list, alerts"),
    (["approvals", "approve", "one"], "approvals approve id one: it must be a whole number"),
    (["budgets", "set", "x"], "budgets set: missing: --limit-usd"),
    (["ui", "--port", "abc"], "ui --port abc: it must be a whole number"),
    (["ui", "--port", "70000"], "--port 70000: it must be a port number from 1 to 65535"),
    (["quant=int8", "suite"], "'suite': '=' is missing: suite=CHOICE; choices: full"),
    (["frontier", "smollm2-135m"], "'smollm2-135m': '=' is missing: model=smollm2-135m"),
    (["frontier", "foo"], "'foo': '=' is missing; configuration is written key=value"),
    (["tags.taem=x"], "tags.taem: unknown tag; did you mean 'team'?; known: workload_type, team, environment; a new tag"
     " is written +tags.taem=x"),
    (["quant=none", "quant.group_size=7"], "this choice of quant= has no such key; those that do: awq, awq-native,"),
    (["promote", "quant.group_size=7"], "quant.group_size: this choice of quant= has no such key; those that do: awq"),
    (["quant=int8", "quant.dampenin=3"], "did you mean 'dampening'"),
    (["gate.max_items=abc"], "gate.max_items=abc: it must be a whole number or null"),
    (["frontier", "gate.max_items=abc"], "gate.max_items=abc: it must be a whole number or null"),
    (["gate.alpha=high"], "gate.alpha=high: it must be a number"),
    (["gate.stop_early=perhaps"], "gate.stop_early=perhaps: it must be true or false"),
    (["residency=sg"], "in brackets, without spaces: residency=[one,two]"),
    (["gate.größe=1"], "gate.größe=1: a key is written in ASCII letters"),
    (["suite.tasks=[größe]"], "letters beyond ASCII inside a list or a mapping need quotes"),
    (["model.note=it's"], "model.note=it's: cannot be read; a value with special characters needs quotes"),
    (["gate.alpha=0.1", "gate.alpha=0.2"], "gate.alpha: is given twice, as 0.1 and as 0.2"),
    (["quant=int8", "quant=awq"], "quant: is given twice, as int8 and as awq"),
    (["engine.max_len=3"], "did you mean 'max_model_len'"),
    (["quant=int9"], "did you mean 'int8'"),
    (["model=llama3"], "did you mean 'llama3-8b'"),
    (["qant=int8"], "did you mean 'quant'"),
    (["--multirun", "quant=none,int9"], "did you mean 'int8'"),
    (["--json", "--multirun", "quant=none,int8"], "a sweep has several decisions"),
    (["--config-dir", "/nowhere", "quant=int8"], "--config-dir /nowhere: there is no such folder"),
    (["--multirun", "--cfg", "job"], "--cfg: it shows instead of running; leave --multirun out"),
    (["--cfg", "jib"], "--cfg/-c jib: unknown; did you mean 'job'?; known: job, hydra, all"),
    (["-sc", "install=tcsh"], "-sc install=tcsh: it must be one of install, uninstall, and one of the shells bash"),
    (["prune", "--days", "-1"], "--days -1.0: it must be a number, at least 0"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(one) for one, _ in MISTAKES])
def test_a_mistake_is_one_sentence_with_the_closest_name(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in message_of(arguments, capsys)


def test_the_suggested_quoting_of_a_special_value_works(capsys: pytest.CaptureFixture[str]) -> None:
    import shlex

    way = message_of(["model.note=it's"], capsys).rpartition("needs quotes: ")[2]
    assert command_config(shlex.split(way)).model.note == "it's"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gate.alpha=3"], "between 0 and 0.5"),
        (["model.path=/nowhere"], "no config.json there"),
        (["hardware.purchase_option=lease"], "no 'lease' offer"),
        (["residency=[sg,au]"], "it can stand in US, outside AU, SG"),
        (["peak_req_per_s=0"], "above 0 (requests/s)"),
        (["finops.energy.power_usage_effectiveness=0.5"], "at least 1"),
        (["model=local"], "model.path"),
        (["load.points=[]"], "nothing to measure"),
        (["suite.source=web"], "'web' is not one of embedded, hub, files"),
    ],
)
def test_a_plans_mistake_ends_with_one_message_and_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in message_of(["plan", *arguments], capsys)


@pytest.mark.parametrize(
    "arguments", [("promte",), ("quant", "int8"), ("gate.max_items=abc",), ("promote", "--rolback")]
)
def test_a_mistake_ends_the_process_with_code_2(arguments: tuple[str, ...]) -> None:
    ended = run(*arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: ")
    assert "Traceback" not in ended.stderr


def test_values_beyond_ascii_are_taken_as_they_are() -> None:
    config = command_config(["model.name=größe", "model.note=ein Modell für größere Maschinen"])
    assert (config.model.name, config.model.note) == ("größe", "ein Modell für größere Maschinen")
    assert command_config(["suite.tasks=['größe']"]).suite.tasks == ["größe"]


def test_keys_of_the_schema_that_no_file_names_can_be_given() -> None:
    config = command_config(["suite.source=files", "suite.tasks=[mine]", "suite.files={mine: /x/mine.yaml}"])
    assert config.suite.files == {"mine": "/x/mine.yaml"}
    assert command_config(["+tags.project=x"]).tags["project"] == "x"


def test_help_shows_verbs_groups_and_examples_and_loads_no_heavy_library() -> None:
    ended = run("--help")
    assert ended.returncode == 0
    assert "  quant     as-is, awq" in ended.stdout
    assert ended.stdout.count("python -m pipeline ") >= 5
    for verb in VERBS:
        assert f"\n  {verb} " in ended.stdout
    assert "scripts/pipeline plan" in run("--help", PARSIMONY_COMMAND="scripts/pipeline").stdout
    program = (
        "import sys; from pipeline.cli.app import dispatch; dispatch(['--help']); "
        "print([m for m in ('torch', 'mlflow', 'sqlalchemy', 'transformers', 'matplotlib') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "[]"


def test_a_mistake_loads_no_heavy_library() -> None:
    program = (
        "import sys; from pipeline.cli.app import dispatch, run_command; "
        "codes = [run_command(dispatch, [word]) for word in ('promte', 'quant')]; "
        "print(codes, [m for m in ('torch', 'mlflow', 'sqlalchemy', 'transformers') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "[2, 2] []"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        VERBS[verb].load()(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"    python -m pipeline {verb}" in shown


def test_every_verbs_function_is_where_the_table_says() -> None:
    for verb in VERBS.values():
        module, _, name = verb.place.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_no_inner_module_is_a_command() -> None:
    for path in [*(ROOT / "pipeline/cli").glob("*.py"), *(ROOT / "finops/cli").glob("*.py")]:
        assert "__main__" not in path.read_text(), path


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import tomllib

    assert dispatch(["--version"]) == 0
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert capsys.readouterr().out == f"parsimony {wanted}\n"
    assert version() == wanted


def test_a_dry_run_of_a_hub_model_needs_no_hub() -> None:
    ended = run("plan", "model=llama3-8b", "hardware=h100-80gb")
    assert ended.returncode == 0, ended.stderr
    assert "8,030 M parameters" in ended.stdout
    assert "nothing was loaded" in ended.stdout


def test_a_sweep_leaves_nothing_in_the_working_directory_but_multirun(tmp_path: Path) -> None:
    ended = run("--multirun", "quant=none,rtn-int8", "dry_run=true", f"home={tmp_path}/home", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("nothing was loaded") == 2
    assert {path.name for path in tmp_path.iterdir()} <= {"multirun", "home"}
    assert (tmp_path / "multirun" / "multirun.yaml").exists()
    assert run("plan", f"home={tmp_path}/home", folder=tmp_path).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} <= {"multirun", "home"}
    for name in ("multirun/", "outputs/"):
        assert f"/{name}" in (ROOT / ".gitignore").read_text().splitlines()


# Completion -----------------------------------------------------------------------------------------------------------


def completions(line: str) -> list[str]:
    ended = run("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("parsimony quant=a", {"quant=awq", "quant=as-is"}),
        ("parsimony promote quant=a", {"quant=awq"}),
        ("scripts/pipeline quant=gp", {"quant=gptq", "quant=gptq-native"}),
        ("parsimony pro", {"promote"}),
        ("parsimony gate.al", {"gate.alpha="}),
        ("parsimony quant=int8 suite=", {"suite=small"}),
    ],
)
def test_the_shell_completes_verbs_keys_and_choices(line: str, offered: set[str]) -> None:
    assert offered <= set(completions(line))


def test_bash_completes_with_the_installed_script(tmp_path: Path) -> None:
    program = tmp_path / "parsimony"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m pipeline "$@"\n')
    program.chmod(0o755)
    script = (
        'eval "$(parsimony -sc install=bash)"; COMP_LINE="parsimony quant=a"; COMP_POINT=17; COMP_CWORD=1; '
        'hydra_bash_completion; printf "%s\\n" "${COMPREPLY[@]}"; complete -p parsimony'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    ended = subprocess.run(
        [str(shutil.which("bash")), "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=ROOT,
    )
    assert "quant=awq" in ended.stdout.split(), ended.stderr
    assert "hydra_bash_completion parsimony" in ended.stdout


# Choices from elsewhere -----------------------------------------------------------------------------------------------


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """A folder of configuration beside conf/."""
    folder = tmp_path / "more"
    (folder / "suite").mkdir(parents=True)
    (folder / "suite" / "mine.yaml").write_text((CONF / "suite/small.yaml").read_text().replace("small", "mine"))
    return folder


def test_choices_come_from_a_config_dir(more: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "mine" in choices(str(more))["suite"]
    assert command_config(["suite=mine"], str(more)).suite.name == "mine"
    ended = run("plan", "suite=mine", "--config-dir", str(more))
    assert ended.returncode == 0, ended.stderr
    assert "suite=mine" in ended.stdout
    assert "did you mean 'mine'" in message_of(["frontier", "suite=min", "--config-dir", str(more)], capsys)
    assert "suite=mine: unknown choice" in message_of(["frontier", "suite=mine"], capsys)


def test_choices_come_from_hydras_search_path(more: Path) -> None:
    path = f"hydra.searchpath=[file://{more}]"
    assert command_config(["suite=mine", path]).suite.name == "mine"
    ended = run("plan", "suite=mine", path)
    assert ended.returncode == 0, ended.stderr
    assert "suite=mine" in ended.stdout


METHOD = """
from dataclasses import dataclass
from pipeline.compress.registry import Method

@dataclass(frozen=True)
class Args:
    strength: float = 0.5

METHOD = Method(name="mine", args=Args, compress=lambda job: None)
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """An installed package that brings a method, its choice, and a model."""
    site = tmp_path / "site"
    for name in ("quant", "model"):
        (site / "their_methods" / "conf" / name).mkdir(parents=True)
    for folder in (site / "their_methods", site / "their_methods" / "conf"):
        (folder / "__init__.py").write_text("")
    (site / "their_methods" / "mine.py").write_text(METHOD)
    (site / "their_methods/conf/quant/mine.yaml").write_text("# theirs\nmethod: mine\nstrength: 0.5\n")
    (site / "their_methods/conf/model/their-model.yaml").write_text(
        (CONF / "model/smollm2-135m.yaml").read_text().replace("name: smollm2-135m", "name: their-model")
    )
    info = site / "their_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-methods\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[parsimony.methods]\nmine = their_methods.mine\n[parsimony.conf]\ntheirs = their_methods.conf\n"
    )
    return site


def test_a_package_brings_a_method_and_a_model(package: Path) -> None:
    environment = {"PYTHONPATH": f"{ROOT}:{package}"}
    ended = run("plan", "quant=mine", "quant.strength=0.7", "model=their-model", **environment)
    assert ended.returncode == 0, ended.stderr
    assert "Variants none (baseline), mine" in ended.stdout
    assert "Model    their-model" in ended.stdout
    assert "mine" in run("--help", **environment).stdout
    assert "quant=mine" in run("-sc", "query=bash", COMP_LINE="parsimony quant=m", **environment).stdout
    wrong = run("plan", "quant=mine", "quant.strenght=1", **environment)
    assert (wrong.returncode, "did you mean 'strength'" in wrong.stderr) == (2, True), wrong.stderr
    assert run("plan", "quant=mine").returncode == 2


def test_a_package_cannot_take_the_name_of_a_method(package: Path) -> None:
    points = package / "their_methods-1.0.dist-info" / "entry_points.txt"
    points.write_text(points.read_text().replace("mine =", "gptq ="))
    ended = run("plan", "quant=int8", PYTHONPATH=f"{ROOT}:{package}")
    assert ended.returncode == 2
    assert "package their-methods brings a method 'gptq'" in ended.stderr


# JSON -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def for_a_program() -> Any:
    console.to_stderr()
    yield
    console.to_stderr(False)


def test_with_json_only_the_result_is_on_standard_output(
    for_a_program: None, capsys: pytest.CaptureFixture[str]
) -> None:
    console.say("for people")
    console.table("title", ("a",), [("b",)])
    ref, bars = StageRef("quality", "key", "int8"), console.ProgressBars("x")
    bars.started(ref)
    bars.finished(ref, StageResult("quality", "key", Path(), {}, 1.0, reused=False, started_at=""))
    console.result('{"action": "hold"}')
    said = capsys.readouterr()
    assert said.out == '{"action": "hold"}\n'
    assert "for people" in said.err
    assert "quality: done" in said.err


def test_without_json_the_result_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    console.result("{}")
    console.say("for people")
    assert capsys.readouterr().out == "for people\n"


def test_a_decision_as_json() -> None:
    money = Money(Decimal("0.2"), Decimal("0.1"), Decimal("0.3"))
    evidence = DecisionEvidence(usd_per_1k_tokens=money, beaten_by=("größer",))
    decision = Decision("hold", "int8", ("not met: price",), GateConfig(delta_points=3), evidence)
    text = decision_json(decision, model="tiny", registry="registry: unchanged", run_id="abc")
    assert "\n" not in text
    found = json.loads(text)
    rule, figures = found.pop("rule"), found.pop("evidence")
    assert found == {
        "model": "tiny", "variant": "int8", "action": "hold", "promoted": False, "reasons": ["not met: price"],
        "registry": "registry: unchanged", "run_id": "abc",
    }  # fmt: skip
    assert rule["delta_points"] == 3
    assert figures["usd_per_1k_tokens"] == {"value": "0.2", "lo": "0.1", "hi": "0.3"}
    assert figures["recovery"] is None
    assert figures["beaten_by"] == ["größer"]
    assert json.loads(rollback_json("tiny", "done"))["action"] == "rollback"

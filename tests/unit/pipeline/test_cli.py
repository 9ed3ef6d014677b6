"""The command line: every configuration file composes, every mistake has a message."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from core.environments import set_defaults
from core.errors import ConfigError
from evals.load.scenario import from_config
from pipeline.checkpoints.facts import facts_from_shape
from pipeline.cli.compose import CONF, check_choices, choices, command_config
from pipeline.compress import registry
from pipeline.plan.resolve import without_checkpoint

ROOT = Path(__file__).resolve().parents[3]
set_defaults()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


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


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("quant=int9", "did you mean 'int8'"),
        ("model=llama3", "did you mean 'llama3-8b'"),
        ("qant=int8", "did you mean 'quant'"),
        ("quant=none,int9", "did you mean 'int8'"),
    ],
)
def test_unknown_choices_name_the_closest(argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_choices([argument])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["engine.max_len=3"], "did you mean 'max_model_len'"),
        (["quant=int8", "quant.dampenin=3"], "did you mean 'dampening'"),
        (["engine.max_model_len=long"], "could not be converted to Integer"),
        (["gate.alpha=3"], "between 0 and 0.5"),
        (["model.path=/nowhere"], "no config.json there"),
        (["hardware.purchase_option=lease"], "no 'lease' offer"),
        (["residency=[sg,au]"], "it can stand in US, outside AU, SG"),
        (["residency=sg"], "in brackets, without spaces: residency=[one,two]"),
        (["peak_req_per_s=0"], "above 0 (requests/s)"),
        (["finops.energy.power_usage_effectiveness=0.5"], "at least 1"),
        (["model=local"], "model.path"),
        (["load.points=[]"], "nothing to measure"),
    ],
)
def test_a_mistake_ends_with_one_message_and_code_2(arguments: list[str], message: str) -> None:
    ended = run(*arguments, "dry_run=true")
    assert ended.returncode == 2, ended.stderr
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_help_shows_groups_and_examples() -> None:
    ended = run("--help")
    assert ended.returncode == 0
    assert "quant: " in ended.stdout
    assert ended.stdout.count("scripts/pipeline ") >= 5


def test_a_dry_run_of_a_hub_model_needs_no_hub() -> None:
    ended = run("model=llama3-8b", "hardware=h100-80gb", "dry_run=true")
    assert ended.returncode == 0, ended.stderr
    assert "8,030 M parameters" in ended.stdout
    assert "nothing was loaded" in ended.stdout


@pytest.mark.parametrize("module", ["pipeline.cli.frontier", "pipeline.cli.promote", "pipeline.cli.ui"])
def test_side_commands_have_help_with_an_example(module: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0
    assert f"python -m {module}" in ended.stdout

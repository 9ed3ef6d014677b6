"""Between the command line and a RunConfig: Hydra composes, we explain what is wrong, errors get an exit code."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.environments import ROOT, set_defaults
from core.errors import ConfigError, ParsimonyError, closest
from pipeline.compress import registry
from pipeline.config import RunConfig

CONF = ROOT / "conf"
INTERRUPTED = 130
PLUGIN_GROUPS = ("quant", "load")
"""Groups whose keys belong to a plug-in, which checks them itself."""


def run_command(main: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a command: the user's errors become a message and an exit code, ours keep their traceback."""
    set_defaults()
    try:
        return main(arguments)
    except ParsimonyError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on where this one stopped\n")
        return INTERRUPTED
    except Exception as error:
        if is_hydra_error(error):
            sys.stderr.write(f"error: {hydra_message(error)}\n")
            return 2
        traceback.print_exc()
        return 1


def command_config(arguments: list[str], doc: str | None) -> RunConfig:
    """The configuration of a side command (`frontier`, `promote`, `ui`), with the run's own groups and keys."""
    if any(argument in ("-h", "--help") for argument in arguments):
        sys.stdout.write((doc or "").strip() + "\n")
        raise SystemExit(0)
    check_choices(arguments)
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return run_config(compose("config", overrides=arguments))


def own_options(arguments: Sequence[str], own: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """A side command's options that are no configuration (`+out=FOLDER`), over their defaults, and the other arguments.

    >>> own_options(["model=tiny", "+out=/tmp"], {"+out": "", "+plane": ""})
    ({'+out': '/tmp', '+plane': ''}, ['model=tiny'])
    """
    given = {name: value for name, _, value in (argument.partition("=") for argument in arguments) if name in own}
    return {**own, **given}, [argument for argument in arguments if argument.partition("=")[0] not in own]


def check_choices(arguments: Sequence[str]) -> None:
    """Check every `group=choice` before Hydra does, so that the message names the closest choice.

    Raises:
        ConfigError: an unknown choice or key.

    """
    groups = choices()
    for argument in arguments:
        if argument.startswith("-") or "=" not in argument:
            continue
        key, _, value = argument.partition("=")
        name = key.lstrip("+~").split("@")[0]
        if "." not in name and name not in groups and name not in RunConfig.__dataclass_fields__ and name != "hydra":
            known = [*groups, *(field for field in RunConfig.__dataclass_fields__ if field not in groups)]
            raise ConfigError(f"'{name}': unknown key{closest(name, known)}; known: {', '.join(known)}")
        if name in groups:
            for choice in value.strip("[]").split(","):
                if choice.strip() not in (*groups[name], "null", ""):
                    listed = ", ".join(groups[name])
                    raise ConfigError(
                        f"{name}={choice}: unknown choice{closest(choice, groups[name])}; known: {listed}"
                    )


def choices() -> dict[str, list[str]]:
    """Every group with the names of its choices."""
    folders = [path for path in sorted(CONF.iterdir()) if path.name != "hydra" and any(path.rglob("*.yaml"))]
    return {
        path.name: sorted(str(file.relative_to(path).with_suffix("")) for file in path.rglob("*.yaml"))
        for path in folders
    }


def run_config(composed: Any) -> RunConfig:
    """Check the composed configuration against the schema.

    Raises:
        ConfigError: an unknown key, a missing value, or a value of the wrong kind.

    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        known = {key: composed[key] for key in composed if key not in ("hydra", "experiment")}
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.create(known))
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(hydra_message(error)) from error
    assert isinstance(config, RunConfig)
    if config.model.source == "path" and not config.model.path:
        raise ConfigError("model.path: no folder is given; write model=local model.path=/a/folder/in/hugging-face/form")
    if config.model.path:
        config.model.path = str(Path(config.model.path).expanduser().resolve())
        is_candidate = registry.is_external(config.quant) and config.model.source != "path"
        if not is_candidate:  # else model= is its baseline
            if config.model.source != "path" or not config.model.name:
                config.model.name = Path(config.model.path).name
            config.model.source, config.model.note = "path", ""
    return config


def is_hydra_error(error: BaseException) -> bool:
    """Whether an error is Hydra's or OmegaConf's word on the user's configuration."""
    return type(error).__module__.split(".")[0] in ("hydra", "omegaconf", "antlr4", "yaml")


def hydra_message(error: BaseException) -> str:
    """Hydra's error in one or a few lines, with the closest known key where one was misspelt."""
    text = str(error)
    if overridden := re.match(r"Could not override '([\w.]+)'", text):
        return unknown_key(overridden.group(1))
    full_key = getattr(error, "full_key", None) or ""
    lines = [
        line for line in text.splitlines() if line.strip() and not line.strip().startswith(("full_key", "object_type"))
    ]
    message = "\n  ".join(lines[:6])
    if "is not a ListConfig" in message:
        message = f"not a list\n  -> in brackets, without spaces: {full_key}=[one,two]"
    return f"{full_key}: {message}" if full_key else message


def unknown_key(key: str) -> str:
    """The message for a key that its group does not have."""
    group, _, last = key.rpartition(".")
    field = RunConfig.__dataclass_fields__.get(group)
    known = [] if field is None else list(getattr(field.default_factory, "__dataclass_fields__", {}))
    if group in PLUGIN_GROUPS:
        import yaml

        files = (CONF / group).glob("*.yaml")
        known = sorted({name for file in files for name in yaml.safe_load(file.read_text())})
    listed = (
        f"; known: {', '.join(known)}" if known else f"; groups and keys: {', '.join(RunConfig.__dataclass_fields__)}"
    )
    return f"{key}: unknown key{closest(last, known)}{listed}"

"""Between the command line and a RunConfig: Hydra composes, and what it finds is checked against the schema.

Choices come from Hydra's own configuration loader: from `conf/`, `--config-dir DIR`, `hydra.searchpath=[...]`, and the
packages whose entry points in the group `parsimony.conf` name a package of configuration files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from core.environments import ROOT
from core.errors import ConfigError
from pipeline.cli.arguments import check_arguments, readable
from pipeline.cli.explain import hydra_message
from pipeline.config import RunConfig

CONF = ROOT / "conf"
CONF_GROUP = "parsimony.conf"
"""Entry points of other packages: each names a package that holds configuration files, laid out as `conf/` is."""


@dataclass(frozen=True)
class Choices:
    """What can be chosen, read from Hydra's loader."""

    groups: dict[str, list[str]]
    """Group -> the names of its choices."""
    keys: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """Group whose keys belong to a plug-in (`quant`, `load`) -> choice -> its keys."""


PLUGIN_GROUPS = ("quant", "load")
"""Groups whose keys belong to a plug-in, which checks them itself."""


def use_plugin_packages() -> None:
    """Tell Hydra to look into the packages that bring configuration files, for this process."""
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    if any(one.__name__ == "PackagesSearchPath" for one in Plugins.instance().discover(SearchPathPlugin)):
        return

    class PackagesSearchPath(SearchPathPlugin):  # type: ignore[misc]
        def manipulate_search_path(self, search_path: Any) -> None:
            for point in entry_points(group=CONF_GROUP):
                search_path.append(provider=point.name, path=f"pkg://{point.value}")

    Plugins.instance().register(PackagesSearchPath)


@contextmanager
def loader(config_dir: str | None = None) -> Iterator[Any]:
    """Hydra, ready to compose: its `config_loader` knows every source of configuration.

    Raises:
        ConfigError: `--config-dir` names no folder.

    """
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra

    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir {config_dir}: there is no such folder")
    version.setbase("1.3")
    use_plugin_packages()
    path = create_config_search_path(str(CONF))
    if config_dir is not None:
        anchor = SearchPathQuery(provider="schema")
        path.prepend(provider="command-line", path=f"file://{Path(config_dir).resolve()}", anchor=anchor)
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2(task_name="pipeline", config_search_path=path)
    finally:
        GlobalHydra.instance().clear()


def read_choices(hydra: Any, arguments: Sequence[str] = ()) -> Choices:
    """Every group with its choices, `hydra.searchpath=` among the arguments included."""
    from hydra.core.object_type import ObjectType

    found = hydra.config_loader
    searched = [one for one in arguments if one.lstrip("+").startswith("hydra.searchpath=")]

    def options(group: str, kind: Any) -> list[str]:
        return list(found.get_group_options(group, kind, config_name="config", overrides=searched))

    def names(group: str) -> list[str]:
        deeper = [f"{sub}/{name}" for sub in options(group, ObjectType.GROUP) for name in names(f"{group}/{sub}")]
        return sorted([*options(group, ObjectType.CONFIG), *deeper])

    found_groups = {group: names(group) for group in options("", ObjectType.GROUP) if group != "hydra"}
    groups = {group: choices for group, choices in sorted(found_groups.items()) if choices}
    return Choices(groups, {group: _keys(found, group, groups.get(group, [])) for group in PLUGIN_GROUPS})


def _keys(found: Any, group: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Choice -> its keys, read without composing."""
    loaded = {name: found.repository.load_config(f"{group}/{name}") for name in names}
    return {name: [str(key) for key in one.config] for name, one in loaded.items() if one is not None}


def choices(config_dir: str | None = None) -> dict[str, list[str]]:
    """Every group with the names of its choices."""
    with loader(config_dir) as hydra:
        return read_choices(hydra).groups


def command_config(arguments: Sequence[str], config_dir: str | None = None) -> RunConfig:
    """The configuration of a verb, with the run's own groups and keys.

    Args:
        arguments: `key=value`, as typed.
        config_dir: a further folder of configuration files (`--config-dir`).

    Raises:
        ConfigError: an unknown choice or key, or a value of the wrong kind.

    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    with loader(config_dir) as hydra:
        known = read_choices(hydra, arguments)
        overrides = readable(arguments)
        check_arguments(arguments, known.groups)
        try:
            composed = hydra.compose_config(
                config_name="config", overrides=overrides, run_mode=_run_mode(), with_log_configuration=False
            )
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(hydra_message(error, known.keys, arguments)) from error
    return run_config(composed)


def _run_mode() -> Any:
    from hydra.types import RunMode

    return RunMode.RUN


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
        is_candidate = config.quant.get("method") == "as-is" and config.model.source != "path"
        if not is_candidate:  # else model= is its baseline
            if config.model.source != "path" or not config.model.name:
                config.model.name = Path(config.model.path).name
            config.model.source, config.model.note = "path", ""
    return config

"""Between the command line and a RunConfig: Hydra composes, and what it finds is checked against the schema.

Choices come from Hydra's own configuration loader: from `conf/`, `--config-dir DIR`, `hydra.searchpath=[...]`, and the
packages whose entry points in the group `parsimony.conf` name a package of configuration files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from core.environments import DATA
from core.errors import ConfigError
from pipeline.cli.arguments import check_arguments, readable
from pipeline.cli.explain import Keys, hydra_message
from pipeline.compress import registry
from pipeline.config import RunConfig

CONF = DATA / "conf"
CONF_GROUP = "parsimony.conf"
"""Entry points of other packages: each names a package that holds configuration files, laid out as `conf/` is."""


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


def _repository(hydra: Any, arguments: Sequence[str]) -> Any:
    """All sources of configuration, those of a `hydra.searchpath=` among the arguments included."""
    searched = [one for one in arguments if one.lstrip("+").startswith("hydra.searchpath=")]
    return hydra.config_loader._parse_overrides_and_create_caching_repo("config", searched)[1]


def read_choices(hydra: Any, arguments: Sequence[str] = ()) -> dict[str, list[str]]:
    """Every group with the names of its choices."""
    from hydra.core.object_type import ObjectType

    sources = _repository(hydra, arguments)

    def names(group: str) -> list[str]:
        subgroups = sources.get_group_options(group, ObjectType.GROUP)
        deeper = [f"{sub}/{name}" for sub in subgroups for name in names(f"{group}/{sub}")]
        return sorted([*sources.get_group_options(group, ObjectType.CONFIG), *deeper])

    found = {group: names(group) for group in sources.get_group_options("", ObjectType.GROUP) if group != "hydra"}
    return {group: choices for group, choices in sorted(found.items()) if choices}


def plugin_keys(arguments: Sequence[str], config_dir: str | None = None) -> Keys:
    """Group whose keys belong to a plug-in -> choice -> its keys: read only to explain a mistake."""
    with loader(config_dir) as hydra:
        sources, groups = _repository(hydra, arguments), read_choices(hydra, arguments)
        return {
            group: {name: _keys_of(sources.load_config(f"{group}/{name}")) for name in groups.get(group, [])}
            for group in PLUGIN_GROUPS
        }


def _keys_of(found: Any) -> list[str]:
    return [] if found is None else [str(key) for key in found.config]


def choices(config_dir: str | None = None) -> dict[str, list[str]]:
    """Every group with the names of its choices."""
    with loader(config_dir) as hydra:
        return read_choices(hydra)


def command_config(arguments: Sequence[str], config_dir: str | None = None) -> RunConfig:
    """The configuration of a verb, with the run's own groups and keys.

    Args:
        arguments: `key=value`, as typed.
        config_dir: a further folder of configuration files (`--config-dir`).

    Raises:
        ConfigError: an unknown choice or key, or a value of the wrong kind.

    """
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf.errors import OmegaConfBaseException

    with loader(config_dir) as hydra:
        check_arguments(arguments, read_choices(hydra, arguments))
        try:
            composed = hydra.compose_config(
                "config", readable(arguments), run_mode=RunMode.RUN, with_log_configuration=False
            )
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(hydra_message(error, plugin_keys(arguments, config_dir), arguments)) from error
    return run_config(composed)


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
    if not config.tracking.uri:
        raise ConfigError(
            "tracking.uri: the server's address is missing; tracking=server needs tracking.uri=http://HOST:5000"
        )
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

"""Hash the stored weights of champions, and of the versions before them, again: are they still what was promoted?

    parsimony verify                                     every registered model
    parsimony verify model=smollm2-135m-q4_1             one model

Exit code 1 where the weights of a version differ from those that were promoted, or are gone. A store on another machine
is downloaded for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.console import say, table
from core.errors import ConfigError, closest
from pipeline.cli.options import config_of, parser
from pipeline.cli.status import is_there
from pipeline.record.store import Recorder
from pipeline.record.versions import Verified, registered_models, verify_model

DIFFERENT = 1
HEADER = ("model", "version", "alias", "promoted", "stored", "result")


def main(arguments: list[str]) -> int:
    """Verify and show; exit code 1 where a version differs."""
    options = parser("verify", __doc__).parse(arguments)
    config = config_of(options)
    client = Recorder(config.tracking).client if is_there(config.tracking.uri) else None
    models = [] if client is None else registered_models(client)
    if any(one.startswith(("model=", "model.name=")) for one in options.overrides):
        if config.model.name not in models:
            known = ", ".join(models) or "none"
            near = closest(config.model.name, models)
            raise ConfigError(f"model={config.model.name}: no version is registered{near}; registered: {known}")
        models = [config.model.name]
    found = (
        [] if client is None else [one for name in models for one in verify_model(client, name, config.promote.alias)]
    )
    if not found:
        say(f"no version is registered in {config.tracking.uri}")
        return 0
    table("Stored weights", HEADER, rows(found))
    return 0 if all(one.is_same for one in found) else DIFFERENT


def rows(found: Sequence[Verified]) -> list[tuple[str, ...]]:
    """One line a version."""
    return [
        (one.model, one.version, one.alias, one.expected[:12], (one.found or "nothing")[:12], result_text(one))
        for one in found
    ]


def result_text(one: Verified) -> str:
    """The result in words."""
    if one.found is None:
        return "the weights are gone"
    return "same" if one.is_same else "different"

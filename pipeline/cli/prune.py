"""List, or delete, old stages in the cache that no registered version and no newer run needs.

    parsimony prune                         what is older than 30 days, with sizes; nothing is deleted
    parsimony prune --days 7
    parsimony prune --days 7 --yes          delete it

A stage stays while a registered version, a run recorded within the same days, or a younger stage was made from it.
What a killed run left (`.partial`) goes by the same age. A stage that a process is making is never touched, and nothing
is deleted while a run computes on this machine. Runs and versions are those of the configured store (`tracking=`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from core.command import command
from core.console import say, table
from core.errors import ConfigError, UserError
from pipeline.cli.options import config_of, parser
from pipeline.cli.status import is_there, moment
from pipeline.config import RunConfig
from pipeline.record.cache import (
    CachedStage,
    Needs,
    cached_stages,
    is_locked,
    needs_of,
    prunable,
    remove,
    size_bytes,
    unused,
)
from pipeline.record.store import MAX_RUNS, Recorder
from pipeline.record.versions import all_versions

MIB = 2**20
HEADER = ("stage", "key", "made (UTC)", "size", "")


def main(arguments: list[str]) -> int:
    """List what may go, and delete it with `--yes`."""
    commands = parser("prune", __doc__)
    commands.add_argument("--days", type=float, default=30.0, help="age from which a stage may go (default: 30)")
    commands.add_argument("--yes", action="store_true", help="delete; without it the stages are only listed")
    options = commands.parse(arguments)
    if not options.days >= 0:
        raise ConfigError(f"--days {options.days}: it must be a number, at least 0")
    config = config_of(options)
    before = datetime.now(UTC) - timedelta(days=options.days)
    store = Path(config.home) / "store"
    found = prunable(cached_stages(store), cache_needs(config, before), before)
    if not found:
        say(f"{store}: nothing is older than {options.days:g} days and not needed")
        return 0
    sizes = {one.folder: size_bytes(one) for one in found}
    table(f"Not needed, in {store}", HEADER, rows(found, sizes))
    total = sum(sizes.values()) / MIB
    if options.yes:
        delete(found, sizes, Path(config.home))
    else:
        say(f"{len(found)} stages, {total:,.1f} MiB; to delete them: {command(retyped(arguments))}")
    return 0


def retyped(arguments: Sequence[str]) -> str:
    """The same command with `--yes`."""
    return " ".join(["prune", *arguments, "--yes"])


def cache_needs(config: RunConfig, since: datetime) -> Needs:
    """What registered versions and the runs since a moment need; nothing where nothing was recorded."""
    if not is_there(config.tracking.uri):
        return Needs(frozenset())
    recorder = Recorder(config.tracking)
    client = recorder.client
    text = f"attributes.start_time >= {int(since.timestamp() * 1000)} and tags.role != 'stage'"
    runs = list(client.search_runs([recorder.experiment_id], text, max_results=MAX_RUNS))
    known = {run.info.run_id for run in runs}
    registered = {str(one.run_id) for one in all_versions(client) if one.run_id} - known
    return needs_of([*runs, *(client.get_run(run_id) for run_id in sorted(registered))])


def rows(found: Sequence[CachedStage], sizes: dict[Path, int]) -> list[tuple[str, ...]]:
    """One line a stage."""
    return [
        (one.stage, one.key, moment(one.made_at), f"{sizes[one.folder] / MIB:,.1f} MiB", state_text(one))
        for one in found
    ]


def state_text(one: CachedStage) -> str:
    """What is special about a stage."""
    if is_locked(one):
        return "in use: stays"
    return "left over by a killed run" if one.is_partial else ""


def delete(found: Sequence[CachedStage], sizes: dict[Path, int], home: Path) -> None:
    """Delete the stages that nobody is making.

    Raises:
        UserError: a run computes on this machine, and may read what would go.

    """
    with unused(home / "machine.lock") as free:
        if not free:
            raise UserError(f"prune: a run computes with {home} now\n  -> try again when it has ended")
        gone = [one for one in found if remove(one)]
    say(f"deleted {len(gone)} stages, {sum(sizes[one.folder] for one in gone) / MIB:,.1f} MiB")

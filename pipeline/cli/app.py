"""The one command line: a table of verbs, and errors that become a message and an exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

from core.command import Verb, as_typed, verb_lines
from core.environments import CODE, missing_package, set_defaults
from core.errors import ConfigError, ParsimonyError, closest
from core.redact import redact_text
from finops.cli.table import VERBS as LEDGER_VERBS
from pipeline.cli.compose import choices
from pipeline.cli.explain import hydra_message, is_hydra_error

INTERRUPTED = 130
VERBS = {
    "run": Verb("pipeline.cli.run:main", "make, measure, price, record and decide (no verb means run)"),
    "plan": Verb("pipeline.cli.run:plan", "what a run would do and cost, and its problems; nothing is loaded"),
    "frontier": Verb("pipeline.cli.frontier:main", "all recorded variants of a model: table, picture, page"),
    "reprice": Verb("pipeline.cli.reprice:main", "price recorded runs anew, without measuring"),
    "promote": Verb("pipeline.cli.promote:main", "decide again over recorded runs, and promote the winner"),
    "rollback": Verb("pipeline.cli.promote:back", "make the version before the champion the champion again"),
    "tune": Verb("pipeline.cli.tune:main", "search the engine's settings for the lowest price at the objective"),
    "noise": Verb("pipeline.cli.noise:main", "measure the noise floor: each variant against itself along two paths"),
    "ui": Verb("pipeline.cli.ui:main", "open MLflow's own pages on the store"),
    "status": Verb("pipeline.cli.status:main", "champions, newest decisions, open charges and reservations"),
    "inspect": Verb("pipeline.cli.inspect:main", "a checkpoint's files: whole or damaged, and bits per weight"),
    "verify": Verb("pipeline.cli.verify:main", "hash the stored weights of champions again and compare"),
    "prune": Verb("pipeline.cli.prune:main", "list or delete old stages in the cache that nothing needs"),
    **LEDGER_VERBS,
}
"""Verb -> the function behind it, imported when it is used."""
HELP = """Promote the cheapest model that is provably good enough.

parsimony [VERB] [key=value ...] [--option ...]

Verbs (`parsimony VERB --help`):
{verbs}

Groups (GROUP=CHOICE; any key of a group: GROUP.KEY=VALUE):
{groups}

Examples:
  parsimony model=smollm2-135m-q4_1 quant=int8             a 135M model, W8A8, on this machine
  parsimony --multirun quant=none,int8                     several candidates; the baseline is measured once
  parsimony plan model=llama3-8b quant=int8 hardware=h100-80gb      the plan and its problems, nothing loaded
  parsimony model=llama3-8b quant=int8 suite=hub           a hub model with the hub's tasks
  parsimony promote model=smollm2-135m-q4_1 gate.delta_points=3     decide again under another gate
  parsimony report                                         what was spent, and by whom

`--cfg job` shows the composed configuration, `--config-dir DIR` adds a folder of choices.
Completion in the shell: eval "$(parsimony -sc install=bash)"
The guide: docs/guide.md
"""


def dispatch(arguments: list[str]) -> int:
    """Run the verb that the arguments name; none means run.

    Raises:
        ConfigError: the verb does not exist.

    """
    first = arguments[0] if arguments else ""
    if first in ("-h", "--help", "help"):
        sys.stdout.write(help_text())
        return 0
    if first == "--version":
        sys.stdout.write(f"parsimony {version()}\n")
        return 0
    if first in VERBS:
        return VERBS[first].load()(arguments[1:])
    if first and first.isidentifier():
        _refuse_word(first)
    return VERBS["run"].load()(arguments)


def _refuse_word(word: str) -> None:
    """A word where a verb stands is a misspelt verb, or configuration without its `=`, which `run` explains."""
    near = closest(word, VERBS)
    groups = choices()
    is_configuration = word in groups or any(word in names for names in groups.values())
    if not is_configuration:
        raise ConfigError(f"'{word}': unknown verb{near}; verbs: {', '.join(VERBS)}")


def help_text() -> str:
    """The text of `--help`: verbs, groups with their choices, examples as they are typed here."""
    groups = choices()
    width = max(len(name) for name in groups)
    listed = "\n".join(f"  {name:<{width}}  {', '.join(names)}" for name, names in groups.items())
    return as_typed(HELP.format(verbs=verb_lines(VERBS), groups=listed))


def version() -> str:
    """The product's version: of the checkout that runs, else of the installed package."""
    import tomllib
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    project = CODE / "pyproject.toml"
    if project.exists():
        return str(tomllib.loads(project.read_text())["project"]["version"])
    try:
        return installed("parsimony")
    except PackageNotFoundError:
        return "unknown"


def run_command(main: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a command: the user's errors become a message and an exit code, ours keep their traceback."""
    set_defaults()
    try:
        return main(arguments)
    except ParsimonyError as error:
        sys.stderr.write(f"error: {redact_text(str(error))}\n")
        return error.exit_code
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on where this one stopped\n")
        return INTERRUPTED
    except Exception as error:
        if message := hydra_message(error) if is_hydra_error(error) else missing_package(error):
            sys.stderr.write(f"error: {message}\n")
            return 2
        traceback.print_exc()
        return 1

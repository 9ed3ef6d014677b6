"""What the money's commands share: the parser's frame, and errors as one message with an exit code."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable

from core.errors import ParsimonyError
from core.redact import RedactingFilter, redact_text


def parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m MODULE` whose help shows the module's text with its examples, and `--ledger`."""
    result = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument(
        "--ledger", metavar="URL", help="SQLite file or database URL (default: PARSIMONY_LEDGER_URL, mlruns/finops.db)"
    )
    return result


def run(main: Callable[[list[str] | None], int]) -> None:
    """Run a command: a user's error is one redacted message and its exit code, without a traceback."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(RedactingFilter())
    try:
        sys.exit(main(None))
    except ParsimonyError as error:
        print(f"error: {redact_text(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)

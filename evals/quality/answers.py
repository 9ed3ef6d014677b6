"""The answer cache: every answer that a served model gave, in one SQLite file, so that no request is sent twice.

The key is (target digest, request digest): another checkpoint, engine, engine version or device has another target
digest. Safe under several processes: SQLite in WAL mode, one short transaction per block of answers.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

from core.files import digest_json
from evals.quality.messages import Answer

SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    target TEXT NOT NULL,
    request TEXT NOT NULL,
    answer TEXT NOT NULL,
    PRIMARY KEY (target, request)
) WITHOUT ROWID
"""
BUSY_TIMEOUT_S = 60.0
MAX_VARIABLES = 500


def request_digest(kind: str, arguments: object, *, as_tokens: bool = False) -> str:
    """The digest of one request.

    Args:
        kind: `loglikelihood` or `generate_until`.
        arguments: lm-eval's for it: the prompt (rendered, where there is a chat template), and the choice or the
            settings of the generation.
        as_tokens: whether token ids are sent. The server adds its begin token to a text, but not to token ids, so the
            same prompt can have two answers.

    """
    return digest_json([f"{kind} of token ids" if as_tokens else kind, arguments])


class AnswerCache:
    """Answers of one target. A context manager."""

    def __init__(self, path: Path, target_digest: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._target = target_digest
        self._connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)
        self._connection.execute("PRAGMA journal_mode=WAL")
        with self._connection:
            self._connection.execute(SCHEMA)

    def get(self, requests: Iterable[str]) -> dict[str, Answer]:
        """The known answers among these request digests."""
        wanted = list(dict.fromkeys(requests))
        found: dict[str, Answer] = {}
        for start in range(0, len(wanted), MAX_VARIABLES):
            part = wanted[start : start + MAX_VARIABLES]
            marks = ",".join("?" * len(part))
            rows = self._connection.execute(
                f"SELECT request, answer FROM answers WHERE target = ? AND request IN ({marks})",
                [self._target, *part],
            )
            found.update((request, json.loads(answer)) for request, answer in rows)
        return found

    def put(self, answers: Mapping[str, Answer]) -> None:
        """Store answers by request digest; one that is stored already stays as it is."""
        rows = [(self._target, request, json.dumps(answer)) for request, answer in answers.items()]
        with self._connection:
            self._connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", rows)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> AnswerCache:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

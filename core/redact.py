"""Secrets out of everything that leaves the process: configurations, logs, errors, tags, MLflow.

Secrets come from the environment alone (PARSIMONY_LEDGER_URL's password, PARSIMONY_WEBHOOK_URL, _WEBHOOK_SECRET and
_SMTP_PASSWORD). Three nets catch one that strays: the values of secret-named environment variables, fields
with a secret's name, and texts in a secret's shape. What is found becomes `[redacted]`, never a prefix of it.

>>> redact_text("postgresql://user:hunter2@db/ledger")
'postgresql://[redacted]@db/ledger'
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Mapping
from typing import Any

MASK = "[redacted]"
_SECRET_NAME = re.compile(
    r"(^|[_\-. ])(pass(word|wd|phrase)?|secret|token|api[_\-]?key|access[_\-]?key|private[_\-]?key|credentials?|"
    r"authorization|webhook([_\-]url)?|signing[_\-]?key)($|[_\-. ])",
    re.IGNORECASE,
)
_NOT_SECRET = re.compile(
    r"(num|max|min|input|output|total|per|cached|break[_\-]even|usd)[_\-].*token|tokens?_|_tokens$|tokenizer",
    re.IGNORECASE,
)
_URL_PASSWORD = re.compile(r"[a-zA-Z][a-zA-Z0-9+.\-]*://[^/@\s:]*:([^/@\s]{4,})@")
_SHAPES = (
    (re.compile(r"([a-zA-Z][a-zA-Z0-9+.\-]*://)[^/@\s]+@"), rf"\1{MASK}@"),
    (re.compile(r"https://hooks\.slack\.com/[^\s\"']+|https://[^\s\"']*\.webhook\.office\.com/[^\s\"']+"), MASK),
    (re.compile(r"https://(?:discord|discordapp)\.com/api/webhooks/[^\s\"']+"), MASK),
    (re.compile(r"\b(?:sk|pk|rk|hf|gh[opsur]|glpat|xox[abpors]|github_pat)[-_][A-Za-z0-9_\-]{8,}"), MASK),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}"), MASK),
    (re.compile(r"\bAIza[A-Za-z0-9_\-]{20,}"), MASK),
    (re.compile(r"\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]+"), MASK),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL), MASK),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/\-]{8,}=*"), rf"\1 {MASK}"),
    (
        re.compile(
            r"(?i)\b((?:[a-z0-9]+[_\-])*(?:password|passwd|secret|api[_\-]?key|access[_\-]?key|signing[_\-]?key|token)"
            r"[\"']?\s*[=:]\s*[\"']?)([^\s\"'&,;}]{4,})"
        ),
        rf"\1{MASK}",
    ),
)


@functools.lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether a field of this name holds a secret (`api_key`, `webhook_url`; not `max_tokens` or `tokenizer`)."""
    return bool(_SECRET_NAME.search(name)) and not _NOT_SECRET.search(name)


def _environment_secrets(environment: Mapping[str, str] | None = None) -> list[str]:
    values = os.environ if environment is None else environment
    found = {value for name, value in values.items() if len(value) >= 6 and is_secret_name(name)}
    found.update(match[1] for value in values.values() if (match := _URL_PASSWORD.match(value)))
    return sorted(found, key=len, reverse=True)


def redact_text(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text without secrets. Values of secret-named environment variables go first, then known shapes."""
    for value in _environment_secrets(environment):
        text = text.replace(value, MASK)
    for pattern, replacement in _SHAPES:
        text = pattern.sub(replacement, text)
    return text


def contains_secret(text: str) -> bool:
    """Whether redaction would change the text."""
    return redact_text(text) != text


def redact(value: object, name: str = "") -> Any:
    """A copy of a configuration or record (dicts, lists, texts) without secrets, by name and by shape."""
    if isinstance(value, Mapping):
        return {redact_text(str(key)): redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [redact(item, name) for item in value]
    if value is not None and is_secret_name(name) and not isinstance(value, (bool, int, float)):
        return MASK
    return redact_text(value) if isinstance(value, str) else value


class RedactingFilter(logging.Filter):
    """A logging filter that redacts message, arguments and traceback. For every handler that leaves the process."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record in place; always keeps it."""
        record.msg = redact_text(record.getMessage())
        record.args = None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = redact_text(record.exc_text)
        record.exc_info = None
        return True

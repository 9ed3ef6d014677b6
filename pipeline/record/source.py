"""Who ran what: the tags by which MLflow shows a run's user, program and version of the code."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from functools import cache

from core.command import program
from core.environments import CODE, IS_INSTALLED
from finops.controls.approvals import current_user

GIT_TIMEOUT_S = 10


def source_tags() -> dict[str, str]:
    """`mlflow.user`, `mlflow.source.*`; what cannot be told has no tag."""
    tags = {"mlflow.source.name": program(), "mlflow.source.type": "LOCAL", "mlflow.source.git.commit": git_commit()}
    with suppress(KeyError, OSError):  # a container's user need not have a name
        tags["mlflow.user"] = current_user()
    return {name: text for name, text in tags.items() if text}


@cache
def git_commit() -> str:
    """The commit of the checkout that runs; empty for an installed package, or without git."""
    if IS_INSTALLED or not (CODE / ".git").exists():
        return ""
    command = ["git", "-C", str(CODE), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=GIT_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""

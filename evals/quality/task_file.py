"""lm-eval task files of the user's own (`suite.source=files`), looked at before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from core.files import digest_file, digest_json


class _AnyTag(yaml.SafeLoader):  # type: ignore[misc]
    """Reads YAML whose `!function` tags only lm-eval understands: they stand for themselves."""


_AnyTag.add_multi_constructor("!", lambda loader, tag, node: f"!{tag} {getattr(node, 'value', '')}")


def read_task_file(path: Path) -> Any:
    """The file's content, unchecked. Raises `OSError`, `yaml.YAMLError` or `UnicodeDecodeError`."""
    return yaml.load(path.read_text(), Loader=_AnyTag)


def task_file_problem(task: str, path: Path) -> str | None:
    """What keeps a file from holding the task of this name; None where nothing does."""
    if not path.is_file():
        return f"there is no file {path}"
    try:
        content = read_task_file(path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        return f"{path} cannot be read as YAML: {str(error).splitlines()[0]}"
    found = content.get("task") if isinstance(content, dict) else None
    if found == task:
        return None
    if isinstance(found, str):
        return f"{path} holds the task '{found}', not '{task}'"
    return f"{path} holds no single task: it needs a line 'task: {task}'"


def task_files_digest(files: dict[str, Path]) -> str:
    """SHA-256 of the task files and the local data that they name: an edited task is another suite."""
    return digest_json({task: _contents(path) for task, path in sorted(files.items())})


def _contents(path: Path) -> Any:
    content = read_task_file(path)
    data = [Path(text) for text in _texts(content) if _names_a_file(text)]
    beside = sorted(path.parent.glob("*.py"))  # what `!function utils.name` refers to
    return {"file": digest_file(path), "data": {str(one): digest_file(one) for one in [*data, *beside]}}


def _names_a_file(text: str) -> bool:
    try:
        return text.startswith("/") and Path(text).is_file()
    except (OSError, ValueError):  # too long, or with a zero byte: a text, and no path
        return False


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []

"""The chat template of a checkpoint: whether it has one, and how a conversation is written with it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from core.errors import ConfigError, Problem
from core.files import read_json

PROMPT_DAY = date(2024, 7, 26)
"""The day that a template which asks for today's date is told. Today's would write other prompts tomorrow, and answers
to them could not be paired with today's. It is the day that Llama's templates write where they know none."""
FIELD = "suite.apply_chat_template"
WAYS = (f"{FIELD}=false asks plain prompts", "model= the model's instruction-tuned checkpoint")


def has_chat_template(folder: Path) -> bool:
    """Whether the checkpoint's tokenizer knows how a conversation is written."""
    config = folder / "tokenizer_config.json"
    return (folder / "chat_template.jinja").is_file() or (
        config.is_file() and bool(read_json(config).get("chat_template"))
    )


def missing_template(name: str) -> Problem:
    """What is wrong where a suite asks for the chat template of a checkpoint that has none."""
    where = "no chat_template.jinja, and none in tokenizer_config.json"
    message = f"true is not possible: the tokenizer of {name} has no chat template ({where})"
    return Problem(FIELD, message, WAYS)


def require_chat_template(folder: Path) -> None:
    """Check that a checkpoint has a chat template.

    Raises:
        ConfigError: it has none.

    """
    if not has_chat_template(folder):
        raise ConfigError(str(missing_template(str(folder))))


def write_conversation(tokenizer: Any, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool) -> str:
    """A conversation as the tokenizer's chat template writes it, begin token included.

    Args:
        tokenizer: of transformers.
        messages: `role` and `content` of each turn.
        add_generation_prompt: end with the head of the assistant's turn; else the last turn is left open.

    Raises:
        ConfigError: the template refuses the conversation, as some do a system's turn.

    """
    try:
        return str(
            tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                strftime_now=PROMPT_DAY.strftime,
            )
        )
    except Exception as error:  # a template is a program of the model's: it may raise anything
        message = f"true is not possible: the model's chat template refuses a prompt: {error}"
        ways = (WAYS[0], "suite.tasks= without the task that it refuses")
        raise ConfigError(str(Problem(FIELD, message, ways))) from error

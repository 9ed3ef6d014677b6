"""How large lm-eval's tasks are, so that an evaluation can be estimated before anything is loaded. Pure.

Items are those of the evaluation split. Tokens are a mean over 100 items of what is scored or read and written for one
item, all choices added up, with the tokenizer of SmolLM2 and without examples in the prompt; those of mmlu and gsm8k
are rough. An example in the prompt adds about as much again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evals.quality.embedded import EMBEDDED_TASKS

OTHER_ITEM_TOKENS = 400
"""Of a task that is not listed; rough."""
OTHER_NUM_ITEMS = 1000
"""Of a task that is not listed; rough. An evaluation of unknown size would otherwise look free."""


@dataclass(frozen=True)
class TaskSize:
    """One task's size on the hub."""

    num_items: int
    item_tokens: int
    num_fewshot: int = 0
    """Examples that the task asks for by itself."""


TASKS = {
    "arc_easy": TaskSize(2376, 133),
    "arc_challenge": TaskSize(1172, 166),
    "piqa": TaskSize(1838, 75),
    "openbookqa": TaskSize(500, 61),
    "sciq": TaskSize(1000, 444),
    "boolq": TaskSize(3270, 295),
    "commonsense_qa": TaskSize(1221, 226),
    "social_iqa": TaskSize(1954, 99),
    "winogrande": TaskSize(1267, 46),
    "hellaswag": TaskSize(10042, 176),
    "mmlu": TaskSize(14042, 400),
    "gsm8k": TaskSize(1319, 250, num_fewshot=5),
}


def known_size(source: str, task: str) -> int | None:
    """Items of a task's evaluation split; None for a task that is not listed, and for the user's own."""
    if source == "embedded" and task in EMBEDDED_TASKS:
        return EMBEDDED_TASKS[task].num_items
    return TASKS[task].num_items if source != "files" and task in TASKS else None


def split_size(source: str, task: str) -> int:
    """Items of a task's evaluation split; rough where it is not known."""
    size = known_size(source, task)
    return OTHER_NUM_ITEMS if size is None else size


def suite_tokens(source: str, tasks: Sequence[str], max_items: Mapping[str, int], num_fewshot: int | None) -> int:
    """Tokens of a suite's questions, roughly.

    Args:
        source: `embedded`, whose splits may be smaller, or another.
        tasks: lm-eval's names.
        max_items: most items asked of a task; a task that is not named is asked in full.
        num_fewshot: examples in each prompt; None: the task's own number.

    """
    total = 0
    for task in tasks:
        size = TASKS.get(task, TaskSize(OTHER_NUM_ITEMS, OTHER_ITEM_TOKENS))
        whole = split_size(source, task)
        shots = size.num_fewshot if num_fewshot is None else num_fewshot
        total += min(whole, max_items.get(task, whole)) * size.item_tokens * (1 + shots)
    return total

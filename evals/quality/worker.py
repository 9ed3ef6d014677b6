"""The process that asks lm-eval's questions: `python -m evals.quality.worker JOB.json RESULT.json`.

Task definitions, prompts, requests and scores are lm-eval's own (`simple_evaluate`); ours are the choice of items, the
answer cache between lm-eval and the server, and what is kept of every item. Progress goes to standard output as lines
`PROGRESS done total`.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.files import digest_json, read_json, write_json
from evals.quality.answers import AnswerCache, request_digest

BLOCK = 128
"""Requests sent between two writes of the answer cache."""


@dataclass(frozen=True)
class NamedTask:
    """A task that was asked for by name: one lm-eval task, or all leaves of a group such as mmlu."""

    name: str
    leaves: list[Any]
    """lm-eval Task objects."""
    sizes: list[int]
    """Items in each leaf's evaluation split."""


def main(job_path: Path, result_path: Path) -> None:
    """Evaluate all tasks of a job and write their outcomes."""
    job = read_json(job_path)
    tasks = [load_task(spec) for spec in job["tasks"]]
    chosen = {task.name: choose_items(task, job["num_items"], job["seed"]) for task in tasks}
    with AnswerCache(Path(job["answers"]), job["target"]["digest"]) as cache:
        model = cached_model(job, cache)
        outcomes = {task.name: evaluate(task, chosen[task.name], model, job) for task in tasks}
    write_json(result_path, outcomes)


def load_task(spec: dict[str, str]) -> NamedTask:
    """Load a task by its file (`path`) or by its stock name."""
    from lm_eval.tasks import TaskManager

    source = spec.get("path")
    manager = TaskManager(include_defaults=source is None)
    leaves = list(manager.load([source or spec["name"]])["tasks"].values())
    return NamedTask(spec["name"], leaves, [len(task.eval_docs) for task in leaves])


def choose_items(task: NamedTask, num_items: int | None, seed: int) -> list[list[int]]:
    """Item indices per leaf: all, or a seeded uniform subset over all leaves together, ascending."""
    total = sum(task.sizes)
    if num_items is None or num_items >= total:
        return [list(range(size)) for size in task.sizes]
    generator = np.random.default_rng([seed, int(digest_json(task.name)[:8], 16)])
    picked = np.sort(generator.choice(total, size=num_items, replace=False))
    starts = np.cumsum([0, *task.sizes])
    return [
        [int(index - start) for index in picked[(picked >= start) & (picked < end)]]
        for start, end in itertools.pairwise(starts.tolist())
    ]


def evaluate(task: NamedTask, chosen: list[list[int]], model: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Score one named task and return its metrics and its items."""
    from lm_eval import simple_evaluate

    asked = [(leaf, ids) for leaf, ids in zip(task.leaves, chosen, strict=True) if ids]
    results = simple_evaluate(
        model=model,
        tasks=[leaf for leaf, _ in asked],
        samples={leaf.task_name: ids for leaf, ids in asked},
        num_fewshot=job["num_fewshot"],
        apply_chat_template=job["apply_chat_template"],
        fewshot_random_seed=job["seed"],
        bootstrap_iters=0,
        log_samples=True,
    )
    assert results is not None
    starts = dict(zip([leaf.task_name for leaf in task.leaves], np.cumsum([0, *task.sizes]).tolist(), strict=False))
    items: list[dict[str, Any]] = []
    prompts: list[Any] = []
    metric, filter_name = primary_metric(asked[0][0], results["samples"][asked[0][0].task_name][0])
    for leaf, _ in asked:
        samples = [one for one in results["samples"][leaf.task_name] if one["filter"] == filter_name]
        for sample in sorted(samples, key=lambda one: one["doc_id"]):
            items.append(item_of(sample, starts[leaf.task_name], metric, model.failures))
            prompts.append([sample["doc_hash"], sample["prompt_hash"], sample["target_hash"]])
    leaf_results = {leaf.task_name: numbers(results["results"][leaf.task_name]) for leaf, _ in asked}
    return {
        "metric": metric,
        "filter": filter_name,
        "items": items,
        "num_items_total": sum(task.sizes),
        "lm_eval": leaf_results,
        "prompts_digest": digest_json(prompts),
        "num_fewshot": results["n-shot"].get(asked[0][0].task_name),
        "version": results["versions"].get(asked[0][0].task_name),
    }


def primary_metric(task: Any, sample: dict[str, Any]) -> tuple[str, str]:
    """The task's first metric and first filter: what its items are scored by."""
    listed = [entry["metric"] for entry in task.config.metric_list or []]
    names = [name if isinstance(name, str) else name.__name__ for name in listed]
    metric = next((name for name in names if name in sample["metrics"]), sample["metrics"][0])
    return metric, sample["filter"]


def item_of(sample: dict[str, Any], start: int, metric: str, failures: dict[str, str]) -> dict[str, Any]:
    """What is kept of one item, in the form of `evals.types.ItemOutcome`."""
    responses = sample["filtered_resps"]
    is_loglikelihood = bool(responses) and isinstance(responses[0], (tuple, list))
    scores = [float(response[0]) for response in responses] if is_loglikelihood else []
    kind = "loglikelihood" if is_loglikelihood else "generate_until"
    reasons = [failures[key] for key in (request_digest(kind, args) for args in sample["arguments"]) if key in failures]
    score = None if reasons else float(sample[metric])
    answer = str(int(np.argmax(scores))) if is_loglikelihood and not reasons else "" if reasons else str(responses[0])
    target = sample["target"]
    return {
        "item_id": start + int(sample["doc_id"]),
        "score": score,
        "loglikelihoods": scores if all(math.isfinite(one) for one in scores) else [],
        "target": target if isinstance(target, int) else str(target),
        "answer": answer,
        "reason": reasons[0] if reasons else "",
        "all_metrics": {name: float(sample[name]) for name in sample["metrics"] if is_number(sample[name])},
    }


def numbers(results: dict[str, Any]) -> dict[str, float]:
    """The numeric entries of lm-eval's own result table."""
    return {key: value for key, value in results.items() if is_number(value)}


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def cached_model(job: dict[str, Any], cache: AnswerCache) -> Any:
    """lm-eval's `local-completions` model with the answer cache in front of its requests."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    class CachedCompletions(LocalCompletionsAPI):  # type: ignore[misc]
        failures: dict[str, str] = {}  # noqa: RUF012
        done = 0

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
            ask = super().loglikelihood
            answers = self._answer(
                "loglikelihood", requests, lambda part: ask(part, disable_tqdm=True), (math.nan, False)
            )
            return [tuple(answer) for answer in answers]

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
            ask = super().generate_until
            return self._answer("generate_until", requests, lambda part: ask(part, disable_tqdm=True), "")

        def _answer(
            self, kind: str, requests: list[Any], ask: Callable[[list[Any]], list[Any]], failed: Any
        ) -> list[Any]:
            keys = [request_digest(kind, request.args) for request in requests]
            known = cache.get(keys)
            missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in known}
            todo = list(missing.items())
            progress(len(known), len(known) + len(todo))
            for start in range(0, len(todo), BLOCK):
                block = todo[start : start + BLOCK]
                fresh = self._ask_block(block, ask)
                cache.put(fresh)
                known.update(fresh)
                progress(len(known), len(missing) + len(known) - len(missing.keys() & known.keys()))
            return [known.get(key, failed) for key in keys]

        def _ask_block(self, block: list[tuple[str, Any]], ask: Callable[[list[Any]], list[Any]]) -> dict[str, Any]:
            try:
                return dict(zip([key for key, _ in block], ask([request for _, request in block]), strict=True))
            except Exception as error:
                if len(block) == 1:
                    self.failures[block[0][0]] = f"the server gave no answer: {root_cause(error)}"
                    return {}
                answers: dict[str, Any] = {}
                for one in block:
                    answers.update(self._ask_block([one], ask))
                if not answers:
                    raise
                return answers

    target = job["target"]
    return CachedCompletions(
        model=target["model_name"],
        base_url=f"{target['url']}/v1/completions",
        tokenizer=target["tokenizer"],
        tokenizer_backend="huggingface",
        tokenized_requests=False,
        num_concurrent=job["num_concurrent"],
        max_length=target["engine"]["max_model_len"],
        max_retries=3,
    )


def root_cause(error: BaseException) -> str:
    """The first line of the error behind an error, without addresses."""
    attempt = getattr(error, "last_attempt", None)
    inner = attempt.exception() if attempt is not None else error
    return f"{type(inner).__name__}: {str(inner).splitlines()[0] if str(inner) else ''}"


def progress(done: int, total: int) -> None:
    """Tell the parent process how far we are."""
    sys.stdout.write(f"PROGRESS {done} {total}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""lm-eval's `local-completions` model with an item selection and an answer cache in front of its requests.

lm-eval hands over all requests of all tasks at once; the selection says which items to ask next. A block's items are
scored with the task's own filters and metric (on copies; lm-eval scores everything again at the end), so that a gate
can look at them. Requests of items that are never asked are answered with NaN; those items are left out of the
outcomes.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from core.errors import ConfigError
from evals.gate.scores import ItemScore, right_probability
from evals.gate.sequential import Block
from evals.quality.answers import AnswerCache, request_digest
from evals.quality.chat import missing_template, write_conversation
from evals.quality.messages import Answer, Leaf, QualityJob, Request, Sample
from evals.quality.selection import ItemId, ItemSelection

BLOCK = 128
"""Requests sent between two writes of the answer cache."""
Places = Mapping[str, tuple[Leaf, str, list[ItemId]]]
"""Per leaf name: lm-eval's task, the name it was asked for by, and the item id of each `doc_id`."""
Ask = Callable[[list[Request]], list[Answer]]
"""Sends requests to the server and returns its answers, one each."""


class SelectedRequests:
    """What stands before lm-eval's `loglikelihood` and `generate_until`: the selection, and the answer cache."""

    def __init__(
        self, cache: AnswerCache, selection: ItemSelection, places: Places, *, as_tokens: bool = False
    ) -> None:
        self.cache, self.selection, self.places, self.as_tokens = cache, selection, places, as_tokens
        self.failures: dict[str, str] = {}
        self.num_fresh = self.num_known = 0
        """Answers that the server gave now, and answers that the cache had."""

    def digest(self, kind: str, arguments: object) -> str:
        """The digest of a request as it is sent here."""
        return request_digest(kind, arguments, as_tokens=self.as_tokens)

    def answer(self, kind: str, requests: list[Request], ask: Ask) -> list[Answer]:
        """An answer for every request, in order; those of items that are not asked stand for nothing."""
        keys = [self.digest(kind, request.args) for request in requests]
        rows: dict[tuple[str, ItemId], list[int]] = {}
        for row, request in enumerate(requests):
            rows.setdefault(item_of(request, self.places), []).append(row)
        answers: dict[str, Answer] = {}

        def fetch(task: str, item_ids: tuple[ItemId, ...]) -> None:
            mine = (row for item_id in item_ids for row in rows.get((task, item_id), ()))
            answers.update(self.fetch({keys[row]: requests[row] for row in mine if keys[row] not in answers}, ask))

        tasks = {task for task, _ in rows}
        self.check_kinds(tasks)
        progress(self.selection)
        while (block := self.selection.next_block(tasks)) is not None:
            fetch(block.task, block.item_ids)
            if self.selection.is_gated(block.task):
                self.selection.feed(block, self.scores(block, rows, requests, keys, answers))
            progress(self.selection)
        for task in tasks:  # items with requests of two kinds were handed out when the first kind was asked
            fetch(task, tuple(self.selection.asked(task)))
        failed = (math.nan, False) if kind == "loglikelihood" else ""
        return [answers.get(key, failed) for key in keys]

    def check_kinds(self, tasks: Iterable[str]) -> None:
        """Check that every gated task asks in one way: else its items could not be scored block by block.

        Raises:
            ConfigError: one does not.

        """
        for leaf, task, _ in self.places.values():
            if task not in tasks or not self.selection.is_gated(task):
                continue
            if len({one.request_type for one in leaf.instances}) > 1:
                raise ConfigError(f"task '{task}' mixes kinds of requests: leave it out of gate.tasks")

    def fetch(self, wanted: Mapping[str, Request], ask: Ask) -> dict[str, Answer]:
        """Answers by request digest: from the cache, or from the server, stored block by block."""
        found = self.cache.get(wanted)
        self.num_known += len(found)
        todo = [(key, request) for key, request in wanted.items() if key not in found | self.failures]
        for start in range(0, len(todo), BLOCK):
            fresh = self.ask_block(todo[start : start + BLOCK], ask)
            self.cache.put(fresh)
            found.update(fresh)
            self.num_fresh += len(fresh)
        return found

    def ask_block(self, block: list[tuple[str, Request]], ask: Ask) -> dict[str, Answer]:
        """Ask the server; where a block fails, one by one, so that each failure is known by its request."""
        try:
            return dict(zip([key for key, _ in block], ask([request for _, request in block]), strict=True))
        except Exception as error:
            if len(block) == 1:
                self.failures[block[0][0]] = f"the server gave no answer: {root_cause(error)}"
                return {}
            answers: dict[str, Answer] = {}
            for one in block:
                answers.update(self.ask_block([one], ask))
            if not answers:
                raise
            return answers

    def scores(
        self,
        block: Block,
        rows: Mapping[tuple[str, ItemId], list[int]],
        requests: list[Request],
        keys: list[str],
        answers: Mapping[str, Answer],
    ) -> list[ItemScore]:
        """The scores of a block's items; None where the server gave no answer."""
        scores: list[ItemScore] = []
        for item_id in block.item_ids:
            mine = rows[block.task, item_id]
            if any(keys[row] not in answers for row in mine):
                scores.append(ItemScore(None, None))
                continue
            leaf = self.places[requests[mine[0]].task_name][0]
            asked, given = [requests[row] for row in mine], [answers[keys[row]] for row in mine]
            scores.append(ItemScore(item_score(leaf, asked, given), choice_probability(leaf, asked, given)))
        return scores

    def num_tokens(self, kind: str, sample: Sample, encode: Callable[[str], Sequence[int]]) -> int | None:
        """Prompt and answer tokens of an item's requests; None where nobody will draw by them."""
        if self.selection.evaluation is not None:
            return None
        texts = [args[0] + (args[1] if kind == "loglikelihood" else "") for args in sample["arguments"]]
        if kind == "generate_until":
            texts += [text for resps in sample["resps"] for text in resps]
        return sum(len(encode(text)) for text in texts)


def cached_model(job: QualityJob, cache: AnswerCache, selection: ItemSelection, places: Places) -> Any:
    """lm-eval's model of a job, with the selection before it. lm-eval is imported here.

    Raises:
        ConfigError: the suite asks for a chat template, and the model's tokenizer has none.

    """
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    # lm-eval renders conversations itself only where it also sends token ids. Those of the rendered prompt are exact:
    # the template writes the begin token, and the server would put a second one before a text.
    is_chat = job["apply_chat_template"]
    asked = SelectedRequests(cache, selection, places, as_tokens=is_chat)

    class SelectingCompletions(LocalCompletionsAPI):  # type: ignore[misc]
        selected = asked

        def loglikelihood(self, requests: list[Request], disable_tqdm: bool = True) -> list[Answer]:
            ask = super().loglikelihood
            answers = asked.answer("loglikelihood", requests, lambda part: ask(part, disable_tqdm=True))
            return [answer if isinstance(answer, str) else tuple(answer) for answer in answers]

        def generate_until(self, requests: list[Request], disable_tqdm: bool = True) -> list[Answer]:
            ask = super().generate_until
            return asked.answer("generate_until", requests, lambda part: ask(part, disable_tqdm=True))

        def loglikelihood_rolling(self, requests: list[Request], disable_tqdm: bool = True) -> list[Answer]:
            raise ConfigError(f"task '{requests[0].task_name}' has no score per item: leave it out of suite.tasks")

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return write_conversation(self.tokenizer, chat_history, add_generation_prompt=add_generation_prompt)

        def num_tokens(self, kind: str, sample: Sample) -> int | None:
            return asked.num_tokens(kind, sample, self.tok_encode)

    target = job["target"]
    model = SelectingCompletions(
        model=target["model_name"],
        base_url=f"{target['url']}/v1/completions",
        tokenizer=target["tokenizer"],
        tokenizer_backend="huggingface",
        tokenized_requests=is_chat,
        num_concurrent=job["num_concurrent"],
        max_length=target["engine"]["max_model_len"],
        max_retries=3,
    )
    if is_chat and not model.tokenizer.chat_template:
        raise ConfigError(str(missing_template(target["tokenizer"])))
    return model


def item_of(request: Request, places: Places) -> tuple[str, ItemId]:
    """The task and the item that a request belongs to. lm-eval's `doc_id` counts the chosen items of a leaf."""
    _, task, ids = places[request.task_name]
    return task, ids[request.doc_id]


def item_score(leaf: Leaf, requests: list[Request], answers: list[Answer]) -> float:
    """An item's score as lm-eval's evaluator computes it: the task's filters, then its metric.

    `requests` are all of the item's; a request that is repeated stands there several times.
    """
    copies: dict[int, Request] = {}
    for request, answer in zip(requests, answers, strict=True):
        one = copies.setdefault(id(request), copy.copy(request))
        if one.resps is request.resps:
            one.resps, one.filtered_resps = [], {}
        one.resps.append(tuple(answer) if isinstance(answer, list) else answer)
    instances = sorted(copies.values(), key=lambda one: one.idx)
    for ensemble in leaf._filters:
        ensemble.apply(instances)
    filter_name = next(iter(instances[0].filtered_resps))
    metrics = leaf.process_results(requests[0].doc, [one.filtered_resps[filter_name] for one in instances])
    return score_in_unit(metrics, primary_metric(leaf, list(metrics)))


def choice_probability(leaf: Leaf, requests: list[Request], answers: list[Answer]) -> float | None:
    """The probability of the right choice, as it is told from the item's record; None where there are no choices."""
    by_choice = sorted(zip(requests, answers, strict=True), key=lambda one: one[0].idx)
    loglikelihoods = [float(answer[0]) for _, answer in by_choice if not isinstance(answer, str)]
    target = leaf.doc_to_target(requests[0].doc)
    return right_probability(loglikelihoods, target) if isinstance(target, (int, str)) else None


def primary_metric(leaf: Leaf, reported: list[str]) -> str:
    """The task's first metric: what its items are scored by."""
    listed = [entry["metric"] for entry in leaf.config.metric_list or []]
    names = [name if isinstance(name, str) else name.__name__ for name in listed]
    return next((name for name in names if name in reported), reported[0])


def score_in_unit(metrics: Mapping[str, object], metric: str) -> float:
    """An item's score.

    Raises:
        ConfigError: it is no number in [0, 1]: then there is no mean that a gate can test.

    """
    try:
        score = float(metrics[metric])  # type: ignore[arg-type]
    except (TypeError, ValueError):
        score = math.nan
    if not 0 <= score <= 1:
        raise ConfigError(f"metric '{metric}' gives {metrics[metric]!r}, no score in [0, 1]: leave this task out")
    return score


def root_cause(error: BaseException) -> str:
    """The first line of the error behind an error, without addresses."""
    attempt = getattr(error, "last_attempt", None)
    inner = attempt.exception() if attempt is not None else error
    return f"{type(inner).__name__}: {str(inner).splitlines()[0] if str(inner) else ''}"


def progress(selection: ItemSelection) -> None:
    """Tell the parent process how far we are, in items."""
    sys.stdout.write(f"PROGRESS {selection.num_asked} {selection.num_items}\n")
    sys.stdout.flush()

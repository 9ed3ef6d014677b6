"""What do the methods lose on running text? Perplexity, KL divergence and flips of finished variants beside their base.

    python -m benchmarks.perplexity --text TEST.txt --record FILE.jsonl none=FOLDER VARIANT=FOLDER ... [--out FILE.md]

The text goes through the base (`none=FOLDER`) and the variants in windows of `--window` tokens that move on by
`--stride`: a token is scored once, in the first window that holds it, with at least window - stride tokens before it
(but for the first window's). Shown: perplexity with an interval, its ratio to the base's, mean KL(base || variant) in
nats, and the share of tokens whose most likely continuation is another than the base's (flips). Intervals are 95%,
from a bootstrap over windows that draws the same windows for all variants.

Every scored window is a line in `--record`, under the digests of its variant and base: a run that was stopped goes on
from there, and a variant that is named later, or made anew with other bytes, is added to it. `--windows N` takes N of
them, drawn at random and the same at every call, the smaller N's among the larger's; without it, the whole text.
The records of the committed tables are in `benchmarks/windows/`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.environments import versions
from core.files import write_atomic
from pipeline.checkpoints.folder import checkpoint_digest
from pipeline.plan.machine import find_machine

BASE = "none"
DRAWS = 10_000
ROWS = 64
"""Tokens whose distributions are compared at a time: 64 rows of 50,000 floats stay in a processor's cache."""
KEEP_MEMORY = {name: str(1 << 36) for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")}
"""glibc gives a window's distributions (170 MiB) back to the system after each use: 15% of the time went there."""


@dataclass(frozen=True)
class Score:
    """One variant on one window: sums over its scored tokens."""

    variant: str
    digest: str
    """Of the variant's checkpoint, and of its base's."""
    start: int
    end: int
    tokens: int
    nll: float
    kl: float
    flips: int


Span = tuple[int, int, int]


def spans(num_tokens: int, window: int, stride: int) -> Iterator[Span]:
    """Cut a text into (start, first scored, end): each token but the first is scored exactly once.

    >>> list(spans(10, window=6, stride=4))
    [(0, 1, 6), (4, 6, 10)]
    """
    scored, start = 1, 0
    while scored < num_tokens:
        end = min(start + window, num_tokens)
        yield start, scored, end
        scored, start = end, start + stride


def digests(folders: Mapping[str, Path]) -> dict[str, str]:
    """What each variant's windows are recorded under."""
    found = {name: checkpoint_digest(folder)[:16] for name, folder in folders.items()}
    return {name: f"{digest}/{found[BASE]}" for name, digest in found.items()}


def measure(ids: Any, windows: Sequence[Span], folders: Mapping[str, Path], record: Path, workers: int) -> None:
    """Score what the record lacks, in several processes, and write each window to it as soon as it is scored."""
    have = {(score.start, score.end, score.digest) for score in read(record)}
    known = digests(folders)
    lacking = {span: [name for name in folders if (span[0], span[2], known[name]) not in have] for span in windows}
    missing = [(span, names) for span, names in lacking.items() if names]
    os.environ.update({**KEEP_MEMORY, **os.environ})
    shares = [missing[first::workers] for first in range(min(workers, len(missing)))]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(_measure, ids, share, folders, known, record, workers) for share in shares]
        for done in as_completed(running):
            done.result()


def _measure(
    ids: Any,
    missing: Sequence[tuple[Span, list[str]]],
    folders: Mapping[str, Path],
    known: Mapping[str, str],
    record: Path,
    workers: int,
) -> None:
    import torch

    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wanted = {BASE}.union(*(names for _, names in missing))
    models = {name: _load(path, device) for name, path in folders.items() if name in wanted}
    with torch.inference_mode(), record.open("a") as file:
        for number, ((start, first, end), names) in enumerate(missing, start=1):
            inputs, targets = ids[start:end].unsqueeze(0).to(device), ids[first:end].to(device)
            base = _log_probabilities(models[BASE], inputs, len(targets))
            lines = []
            for name in names:
                ours = base if name == BASE else _log_probabilities(models[name], inputs, len(targets))
                score = Score(name, known[name], start, end, len(targets), *compare(base, ours, targets))
                lines.append(json.dumps(asdict(score)) + "\n")
            file.write("".join(lines))
            file.flush()  # one write to the end of the file: the processes' lines don't mix
            sys.stderr.write(f"\r{number} of {len(missing)} windows")


def _load(folder: Path, device: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=device).eval()
    for name, module in list(model.named_modules()):
        if device == "cpu" and hasattr(module, "dequantize_weight"):  # GPTQModel's layers do it at every call
            model.set_submodule(name, _dequantized(module))
    return model


def _dequantized(layer: Any) -> Any:
    import torch

    weight = layer.dequantize_weight().T.float()
    linear = torch.nn.Linear(*weight.shape[::-1], bias=layer.bias is not None)
    linear.weight.data.copy_(weight)
    if layer.bias is not None:
        linear.bias.data.copy_(layer.bias)
    return linear


def _log_probabilities(model: Any, inputs: Any, num_targets: int) -> Any:
    """What is said of the window's last `num_targets` tokens: shape (num_targets, vocabulary)."""
    logits = model(inputs, logits_to_keep=num_targets + 1, use_cache=False).logits[0, :-1]
    return logits.float().log_softmax(-1)


def compare(base: Any, ours: Any, targets: Any) -> tuple[float, float, int]:
    """Sums over tokens: our negative log-likelihood (nats), KL(base || ours) (nats), other most likely tokens.

    Args:
        base: log-probabilities, shape (num_tokens, vocabulary).
        ours: log-probabilities of the same shape.
        targets: the tokens that came, shape (num_tokens,).

    """
    nll = kl = 0.0
    flips = 0
    for first in range(0, len(targets), ROWS):
        rows = slice(first, first + ROWS)
        log_p, log_q = base[rows], ours[rows]
        nll -= log_q.gather(1, targets[rows].unsqueeze(1)).double().sum().item()
        kl += (log_p.exp() * (log_p - log_q)).sum(-1).double().sum().item()
        flips += int((log_q.argmax(-1) != log_p.argmax(-1)).sum())
    return nll, kl, flips


def read(record: Path) -> list[Score]:
    """The recorded windows; a last line that a kill cut short is taken out of the file."""
    text = record.read_text() if record.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_atomic(record, whole)
    return [Score(**json.loads(line)) for line in whole.splitlines()]


def table(scores: list[Score]) -> str:
    """One line for each variant, over the windows that all of them have."""
    by_variant: dict[str, dict[tuple[int, int], Score]] = {}
    for score in scores:
        by_variant.setdefault(score.variant, {})[score.start, score.end] = score
    windows = sorted(set.intersection(*(set(found) for found in by_variant.values())))
    base = [by_variant[BASE][window] for window in windows]
    lines = [
        "| variant | perplexity [95%] | ratio to none [95%] | KL, nats [95%] | flips [95%] |",
        "|---|---|---|---|---|",
    ]
    lines += [_row(name, [found[window] for window in windows], base) for name, found in by_variant.items()]
    return "\n".join(lines) + "\n"


def _row(name: str, ours: list[Score], base: list[Score]) -> str:
    picks = np.random.default_rng(0).integers(0, len(ours), size=(DRAWS, len(ours)))
    tokens = np.array([score.tokens for score in ours], dtype=float)

    def mean(values: list[float]) -> tuple[float, NDArray[np.float64]]:
        sums = np.array(values)
        return float(sums.sum() / tokens.sum()), sums[picks].sum(1) / tokens[picks].sum(1)

    nll, nll_draws = mean([score.nll for score in ours])
    change, change_draws = mean([one.nll - other.nll for one, other in zip(ours, base, strict=True)])
    cells = [f"{math.exp(nll):.2f} {_interval(np.exp(nll_draws), '.2f')}"]
    if name == BASE:
        cells += ["", "", ""]
    else:
        kl, kl_draws = mean([score.kl for score in ours])
        flips, flips_draws = mean([float(score.flips) for score in ours])
        cells += [
            f"{math.exp(change):.4f} {_interval(np.exp(change_draws), '.4f')}",
            f"{kl:.4f} {_interval(kl_draws, '.4f')}",
            f"{flips:.2%} {_interval(flips_draws, '.2%')}",
        ]
    return f"| {name} | {' | '.join(cells)} |"


def _interval(draws: NDArray[np.float64], form: str) -> str:
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"[{low:{form}}, {high:{form}}]"


def main() -> None:
    """Parse the command line, measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True, help="JSON lines, one for each window and variant")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--stride", type=int, default=896)
    parser.add_argument("--windows", type=int, help="only N windows, drawn at random")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the windows and the processors")
    parser.add_argument("--out", type=Path)
    parser.add_argument("variants", nargs="+", metavar="VARIANT=FOLDER")
    arguments = parser.parse_args()
    folders = {name: Path(path) for name, _, path in (item.partition("=") for item in arguments.variants)}
    if BASE not in folders:
        parser.error(f"name the base too: {BASE}=FOLDER")
    if not 0 < arguments.stride <= arguments.window:
        parser.error(f"--stride {arguments.stride}: from 1 to the window ({arguments.window})")
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folders[BASE])(arguments.text.read_text(), return_tensors="pt").input_ids[0]
    windows = list(spans(len(ids), arguments.window, arguments.stride))
    windows = [windows[index] for index in np.random.default_rng(0).permutation(len(windows))[: arguments.windows]]
    measure(ids, windows, folders, arguments.record, arguments.workers)
    taken = {(start, end) for start, _, end in windows}
    names = {digest: name for name, digest in digests(folders).items()}
    scores = [
        replace(one, variant=names[one.digest])
        for one in read(arguments.record)
        if one.digest in names and (one.start, one.end) in taken
    ]
    num_scored = sum(score.tokens for score in scores if score.variant == BASE)
    machine = find_machine()
    tools = versions(Path(sys.executable), "transformers", "torch", "compressed-tensors", "llmcompressor", "gptqmodel")
    where = f"{machine.device_name}, {machine.num_cpus} CPUs, {time.strftime('%Y-%m-%d')}"
    text = (
        f"{num_scored:,} of {len(ids) - 1:,} tokens of {arguments.text.name} ({len(windows)} windows of "
        f"{arguments.window} that move by {arguments.stride}); {where}; "
        f"{', '.join(f'{name} {version}' for name, version in tools.items())}\n\n{table(scores)}"
    )
    if arguments.out is not None:
        write_atomic(arguments.out, text)
    sys.stdout.write("\n" + text)


if __name__ == "__main__":
    main()

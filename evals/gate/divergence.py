"""How far a candidate's answers lie from its baseline's, beyond right and wrong. Information: no gate decides by it.

Divergence and likelihood move before answers flip, and correlate with quality overall, but not near the baseline (Dutta
et al., arXiv 2407.09141). They come from the log-likelihoods of the answer choices that lm-eval asks for anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evals.gate.betting import FloatArray
from evals.types import Divergence, ItemOutcome


def divergence(candidate: Sequence[ItemOutcome], baseline: Sequence[ItemOutcome]) -> Divergence | None:
    """Compare two models' choice log-likelihoods; None where no item has any on both sides (generation tasks).

    >>> a, b = ItemOutcome(0, 1.0, (-1.0, -2.0), 0), ItemOutcome(0, 1.0, (-1.5, -2.5), 0)
    >>> found = divergence([b], [a])
    >>> round(found.kl_nats, 9), round(found.answer_perplexity_ratio, 3)
    (0.0, 1.649)
    """
    known = {item.item_id: item for item in baseline if len(item.loglikelihoods) > 1}
    pairs = [
        (item, known[item.item_id])
        for item in candidate
        if item.item_id in known and len(item.loglikelihoods) == len(known[item.item_id].loglikelihoods)
    ]
    if not pairs:
        return None
    kls, drops = [], []
    for ours, theirs in pairs:
        log_q, log_p = _log_softmax(ours.loglikelihoods), _log_softmax(theirs.loglikelihoods)
        kls.append(float((np.exp(log_p) * (log_p - log_q)).sum()))
        if isinstance(theirs.target, int) and 0 <= theirs.target < len(log_p):
            drops.append(theirs.loglikelihoods[theirs.target] - ours.loglikelihoods[theirs.target])
    ratio = float(np.exp(np.mean(drops))) if drops else None
    return Divergence(max(0.0, float(np.mean(kls))), ratio, len(pairs))


def _log_softmax(values: Sequence[float]) -> FloatArray:
    array = np.asarray(values, np.float64)
    top = array.max()
    return np.asarray(array - top - np.log(np.exp(array - top).sum()), np.float64)

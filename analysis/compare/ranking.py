"""How well a score orders what is unknown above what is known, and how two scores agree in their order.

The unknown is the positive class, and larger scores say that something is unknown. A score that is NaN leaves every value NaN.

Shapes: N known, M unknown, S distinct scores.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import rankdata

from .statistics import Floats


def auroc(known_N: Floats, unknown_M: Floats) -> float:
    """Probability that one of ``unknown_M`` has a larger score than one of ``known_N``, ties counting half."""
    ranks_M = rankdata(np.concatenate([known_N, unknown_M]))[len(known_N) :]
    return float((ranks_M.mean() - (len(unknown_M) + 1) / 2) / len(known_N))


def average_precision(known_N: Floats, unknown_M: Floats) -> float:
    """The mean over ``unknown_M`` of the share of unknown among all with at least its score: the area under the precision-recall
    curve, as steps. By chance M / (N + M)."""
    known_S, unknown_S = _flagged(known_N, unknown_M)
    found_S = np.diff(unknown_S, prepend=0)
    return float(found_S @ (unknown_S / (known_S + unknown_S)) / len(unknown_M))


def false_positive_rate(known_N: Floats, unknown_M: Floats, found: float = 0.95) -> float:
    """The least share of ``known_N`` that a threshold flags which flags at least the share ``found`` of ``unknown_M``."""
    known_S, unknown_S = _flagged(known_N, unknown_M)
    return float(known_S[np.argmax(unknown_S >= found * len(unknown_M))] / len(known_N))


def rank_correlation(a_N: Floats, b_N: Floats) -> float:
    """Spearman's rank correlation, ties having their mean rank. NaN where one of the two does not vary."""
    ranks_N, others_N = rankdata(a_N), rankdata(b_N)
    if ranks_N.min() == ranks_N.max() or others_N.min() == others_N.max():
        return math.nan
    return float(np.corrcoef(ranks_N, others_N)[0, 1])


def _flagged(known_N: Floats, unknown_M: Floats) -> tuple[Floats, Floats]:
    """How many of each have at least each of the distinct scores (S,), from the largest score down."""
    score = np.concatenate([known_N, unknown_M])
    if np.isnan(score).any():
        return np.array([math.nan]), np.array([math.nan])
    threshold_S = np.unique(score)[::-1]
    known_S, unknown_S = (
        len(x) - np.searchsorted(np.sort(x), threshold_S).astype(np.float64) for x in (known_N, unknown_M)
    )
    return known_S, unknown_S

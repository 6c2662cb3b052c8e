"""How well a score orders what is unknown above what is known, and how two scores agree in their order.

The unknown is the positive class, and larger scores say that something is unknown. A score that is NaN leaves every value NaN.

Shapes: N known, M unknown, S distinct scores.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import rankdata, spearmanr

from .statistics import Floats, Ids


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


def rank_correlation(a_N: Floats, b_N: Floats | Ids, constant: float = 0.0) -> float:
    """Spearman's rank correlation, ties having their mean rank. NaN where ``b_N`` does not vary, or ``a_N`` by no more than
    ``constant``: the order of values that are all the same says nothing."""
    if not (np.ptp(a_N) > constant and np.ptp(b_N) > 0):
        return math.nan
    return float(spearmanr(a_N, b_N).statistic)


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

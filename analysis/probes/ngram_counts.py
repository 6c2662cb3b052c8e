"""Next-token distributions of a corpus's n-grams, from sparse counts: interpolated, with Witten and Bell's weights.

After a context c of n - 1 tokens that was seen C(c) times before T(c) different tokens,

    q_n(w | c) = (C(c w) + T(c) q_{n-1}(w | c without its first token)) / (C(c) + T(c))

(Witten and Bell 1991; method C), q_0 being uniform: where c was never seen q_n is q_{n-1}, and no token has probability 0.

Shapes: M tokens of the text, G different n-grams, N contexts, K entries of all contexts together, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.compare.statistics import Floats, Ids

ORDERS = (1, 2, 3)
NO_TOKEN = -1
"""Stands before the first token of a context: no n-gram that was counted has it."""


@dataclass(frozen=True)
class Grams:
    """The different n-grams of a text as numbers in base V, ascending, and how often each occurs."""

    key_G: Ids
    count_G: Ids


class NGramModel:
    """q_1, q_2 and q_3 of a text."""

    def __init__(self, ids_M: Ids, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self._grams = [_count(ids_M, order, vocabulary) for order in ORDERS]

    def distributions(self, context_N2: Ids) -> list[Floats]:
        """q_1, q_2 and q_3, each (N, V), after the last two tokens of each text; the first may be NO_TOKEN."""
        q_NV = np.full((len(context_N2), self.vocabulary), 1 / self.vocabulary)
        found = []
        for order, grams in zip(ORDERS, self._grams, strict=True):
            context_N = _as_number(context_N2[:, 2 - (order - 1) :], self.vocabulary)
            known_N = (context_N2[:, 2 - (order - 1) :] != NO_TOKEN).all(1)
            q_NV = _interpolated(q_NV, grams, np.where(known_N, context_N, -1), self.vocabulary)
            found.append(q_NV)
        return found


def contexts_of(x_T: Ids) -> Ids:
    """(T, 2): the last two tokens read at each position of a window, of which the first position has only one."""
    return np.stack([np.append(NO_TOKEN, x_T[:-1]), x_T], axis=1)


def _count(ids_M: Ids, order: int, vocabulary: int) -> Grams:
    ids_M = np.asarray(ids_M, dtype=np.int64)
    last = len(ids_M) - order + 1
    columns = np.lib.stride_tricks.sliding_window_view(ids_M, order) if last > 0 else np.empty((0, order), np.int64)
    return Grams(*np.unique(_as_number(columns, vocabulary), return_counts=True))


def _as_number(ids_NO: Ids, vocabulary: int) -> Ids:
    """Each row as a number in base V; 0 without a column."""
    number_N = np.zeros(len(ids_NO), dtype=np.int64)
    for id_N in ids_NO.T:
        number_N = number_N * vocabulary + id_N
    return number_N


def _interpolated(below_NV: Floats, grams: Grams, context_N: Ids, vocabulary: int) -> Floats:
    """q_n from q_{n-1}: the entries of a context are the n-grams whose number begins with its own."""
    low_N, high_N = (np.searchsorted(grams.key_G, (context_N + more) * vocabulary) for more in (0, 1))
    kinds_N = high_N - low_N
    row_K = np.repeat(np.arange(len(context_N)), kinds_N)
    at_K = np.arange(len(row_K)) + np.repeat(low_N - np.append(0, np.cumsum(kinds_N)[:-1]), kinds_N)
    seen_N = np.bincount(row_K, grams.count_G[at_K], len(context_N))
    total_N = np.maximum(seen_N + kinds_N, 1)
    q_NV: Floats = np.where(kinds_N > 0, kinds_N / total_N, 1.0)[:, None] * below_NV
    q_NV[row_K, grams.key_G[at_K] % vocabulary] += grams.count_G[at_K] / total_N[row_K]
    return q_NV

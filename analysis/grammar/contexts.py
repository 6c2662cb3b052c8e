"""The contexts in which a predictor is compared with the synonym grammar, and its temperatures there.

Shapes: D documents, B rows of a batch, T positions, N positions that count, V vocabulary.

A predictor is a function from rows of tokens to log-distributions, so that models and predictors that a test derives from the
grammar go through the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from analysis.compare.statistics import Floats, Ids
from analysis.compare.temperature import Calibration
from data.grammar import Grammar

Predictor = Callable[[Ids], Floats]
"""x_BT -> ln q_BTV, normalised: what may follow after each prefix of each row."""

_NUMBERS_AT_ONCE = 1 << 21  # float64 of one distribution over a batch: 16 MiB


@dataclass(frozen=True)
class Contexts:
    """Documents, each from its first token and after an end of text; all positions up to ``length_D`` count.

    Rows are padded by repeating the document, which is text of the grammar too.
    """

    x_DT: Ids
    y_DT: Ids
    """The token after each prefix."""
    length_D: Ids
    document_D: Ids
    """The document's number in its split."""

    def first(self, documents: int) -> Contexts:
        """The first of the documents."""
        return Contexts(*(column_D[:documents] for column_D in (self.x_DT, self.y_DT, self.length_D, self.document_D)))

    def batches(self, vocabulary: int) -> Iterator[tuple[Ids, Ids, npt.NDArray[np.bool_]]]:
        """Row indices, the rows' tokens up to the longest row, and which positions count; the longest rows come first."""
        order = np.argsort(-self.length_D, kind="stable")
        start = 0
        while start < len(order):
            longest = int(self.length_D[order[start]])
            row_B = order[start : start + max(1, _NUMBERS_AT_ONCE // (vocabulary * longest))]
            yield row_B, self.x_DT[row_B, :longest], np.arange(longest) < self.length_D[row_B, None]
            start += len(row_B)


def contexts_of(ids: npt.NDArray[np.integer], starts: Ids, chosen: Ids, length: int, end_of_text: int) -> Contexts:
    """The documents ``chosen`` of a split with tokens ``ids`` and document starts ``starts``, cut to ``length`` positions."""
    ends = np.append(starts[1:], len(ids))
    documents = [np.asarray(ids[starts[d] : ends[d]], dtype=np.int64) for d in chosen]
    length_D = np.array([min(len(document), length) for document in documents], dtype=np.int64)
    longest = int(length_D.max())
    y_DT = np.stack([np.resize(document, longest) for document in documents])
    x_DT = np.concatenate([np.full((len(y_DT), 1), end_of_text, dtype=np.int64), y_DT[:, :-1]], axis=1)
    return Contexts(x_DT, y_DT, length_D, np.asarray(chosen, dtype=np.int64))


@dataclass(frozen=True)
class TruthCalibration(Calibration):
    """A predictor's distributions on a few documents, from which its temperatures are found.

    Its NLL is the expected one, under the true distributions: no sampled word adds noise to the best temperature.
    """

    log_q_NV: Floats
    p_NV: Floats
    """The truth in the same contexts."""
    precision: ClassVar[float] = 1e-12

    @classmethod
    def of(cls, predict: Predictor, grammar: Grammar, contexts: Contexts) -> TruthCalibration:
        """From the distributions that ``predict`` gives on ``contexts``, all in memory."""
        parts = [
            (predict(x_BT)[valid_BT], grammar.next_distribution(x_BT)[valid_BT])
            for _, x_BT, valid_BT in contexts.batches(len(grammar.words))
        ]
        log_q, p = zip(*parts, strict=True)
        return cls(np.concatenate(log_q), np.concatenate(p))

    def means(self, beta: float) -> tuple[float, float, float]:
        """See :meth:`Calibration.means`; the slope is the mean of ln q under q^beta, normalised, minus that under the truth."""
        z_NV = beta * self.log_q_NV
        top_N = z_NV.max(axis=1)
        weight_NV = np.exp(z_NV - top_N[:, None])
        total_N = weight_NV.sum(axis=1)
        mean = float((dot(weight_NV, self.log_q_NV) / total_N).mean())
        log_total = float((top_N + np.log(total_N)).mean())
        return mean - self._true_mean, log_total - beta * mean, log_total - beta * self._true_mean

    @cached_property
    def _true_mean(self) -> float:
        """The mean of ln q under the truth."""
        return float(dot(self.p_NV, self.log_q_NV).mean())


def tempered(log_q_NV: Floats, temperature: float) -> Floats:
    """Logarithms of the distributions proportional to q^(1/temperature); unchanged at 1."""
    if temperature == 1:
        return log_q_NV
    z_NV = log_q_NV / temperature
    z_NV -= z_NV.max(axis=1, keepdims=True)
    tempered_NV: Floats = z_NV - np.log(np.exp(z_NV).sum(axis=1, keepdims=True))
    return tempered_NV


def dot(p_NV: Floats, value_NV: Floats) -> Floats:
    """(N,): the sum of :func:`products`."""
    sums_N: Floats = products(p_NV, value_NV).sum(axis=1)
    return sums_N


def products(p_NV: Floats, value_NV: Floats) -> Floats:
    """(N, V): p times a value, 0 where p is 0 even if the value is infinite or undefined there."""
    with np.errstate(invalid="ignore"):
        products_NV: Floats = p_NV * value_NV
    products_NV[p_NV == 0] = 0.0
    return products_NV

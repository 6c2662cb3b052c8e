"""How far a predictor's distributions are from the true ones of the synonym grammar: over sets, within sets, and as a whole.

Shapes: D documents, B rows of a batch, T positions, N positions that count, V vocabulary, S sets, K words of the largest
set, Q (position, set) pairs in which the set can occur, R of these that are kept, X views.

In a context a set has the true joint probability m and the predictor's M; within it the words have the true shares p/m and
the predictor's q/M. Every mean over contexts of a set is weighted by m: it is the exact expectation over the contexts in
which the set comes next, and does not depend on which of its words was sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.compare.metric import Metric
from analysis.compare.statistics import Bools, Floats, Ids, Labels
from analysis.compare.temperature import Calibration
from data.grammar import Grammar, SynonymSet

from .study import Contexts, Predictor

TRUE_KINDS = ("equal", "unequal", "rare", "contextual")
"""Kinds of true synonyms."""
CONTROL_KINDS = ("near", "antonym")
"""Kinds whose words share contexts but differ in what follows: the choice among them is meaning, not style. The topic decides
between near-synonyms; antonyms are equally probable everywhere."""
KINDS = TRUE_KINDS + CONTROL_KINDS

KEPT_MASS = 0.01
"""Single contexts in which a set is at least this probable are kept; they hold about half of all mass."""

_TIED = 1e-9  # shares that differ by less are equal: the last digits are rounding errors of filtering
SET_METRICS = (
    Metric("split_kl", "split KL", ".4f", "KL(true split || model's split) within the set, nats: what is torn apart"),
    Metric("log_fracture", "ln m/M", ".4f", "log fracture: ln of the true joint mass over the model's, nats"),
    Metric("fracture", "fracture", ".4f", "true joint mass minus the model's; negative: the set gets too much"),
    Metric(
        "minority", "minority", ".4f", "model's share of the least probable word minus its true share, where not tied"
    ),
    Metric("joint_kl", "joint KL", ".4f", "m ln(m/M) - m + M over all contexts, per occurrence; never negative, nats"),
)
TEXT_METRICS = (
    Metric("kl", "KL", ".4f", "KL(true distribution || model's), nats per token: the expected excess NLL"),
    Metric("between", "between", ".4f", "its part between meanings: sets of synonyms or words, and single words"),
    Metric("within_true", "within syn", ".5f", "its part within true synonyms: sum of m times split KL"),
    Metric("within_control", "within ctl", ".5f", "its part within near-synonyms and antonyms"),
    Metric("nll", "NLL", ".4f", "-ln q of the word that came, nats per token; the truth has its own"),
    Metric("excess", "excess NLL", ".4f", "NLL minus the truth's on the same words"),
    Metric("entropy", "entropy", ".4f", "entropy of the model's distribution, nats; the truth has its own"),
)


@dataclass(frozen=True)
class Kept:
    """Single contexts of single sets: the true masses and the model's; shares are those of the set's first word."""

    set_R: Ids
    document_R: Ids
    position_R: Ids
    mass_R: Floats
    share_R: Floats
    model_mass_XR: Floats
    model_share_XR: Floats
    split_kl_XR: Floats


@dataclass(frozen=True)
class Scores:
    """Sums over the positions of each document, in each view."""

    document_D: Ids
    position_D: Floats
    """Number of positions counted."""
    mass_DS: Floats
    """Sum of the true joint mass: the expected number of occurrences of the set."""
    minority_mass_DS: Floats
    """The same over the contexts in which its words are not equally probable."""
    of_sets: dict[str, Floats]
    """For each of SET_METRICS (X, D, S): the metric times ``weight_DS``."""
    of_text: dict[str, Floats]
    """For each of TEXT_METRICS (X, D): the metric times ``position_D``."""
    truth: dict[str, Floats]
    """(D,) sums of the truth's own "nll" and "entropy"."""
    kept: Kept

    def weight_DS(self, key: str) -> Floats:
        """The weight of a metric of sets."""
        return self.minority_mass_DS if key == "minority" else self.mass_DS


def evaluate(predict: Predictor, grammar: Grammar, contexts: Contexts, temperatures: Sequence[float]) -> Scores:
    """Compare ``predict``, at each of the temperatures, with the truth, some thousand contexts at a time.

    A temperature of NaN gives NaN. A predictor that gives no probability to a token that can occur gets infinities.
    """
    documents, views, sets = len(contexts.length_D), len(temperatures), len(grammar.sets)
    of_sets = {metric.key: np.zeros((views, documents, sets)) for metric in SET_METRICS}
    of_text = {metric.key: np.zeros((views, documents)) for metric in TEXT_METRICS}
    truth = {key: np.zeros(documents) for key in ("nll", "entropy")}
    mass_DS, minority_mass_DS = np.zeros((documents, sets)), np.zeros((documents, sets))
    kept: list[list[Labels]] = []
    partition = Partition(grammar.sets, len(grammar.words))
    for row_B, x_BT, valid_BT in contexts.batches(len(grammar.words)):
        row_N, position_N = (place[valid_BT] for place in np.broadcast_arrays(row_B[:, None], np.arange(x_BT.shape[1])))
        y_N = contexts.y_DT[row_N, position_N]
        true = Truth(grammar.next_distribution(x_BT)[valid_BT], partition)
        log_q_NV = predict(x_BT)[valid_BT]
        mass_DS += true.by_document(true.mass_Q, row_N, documents)
        minority_mass_DS += true.by_document(true.mass_Q * ~true.tied_Q, row_N, documents)
        truth["nll"] -= _sums(row_N, np.log(true.p_NV[np.arange(len(y_N)), y_N]), documents)
        truth["entropy"] -= _sums(row_N, dot(true.p_NV, true.log_p_NV), documents)
        kept_R = np.flatnonzero(true.mass_Q >= KEPT_MASS)
        row_R = row_N[true.row_Q[kept_R]]
        columns = [true.set_Q[kept_R], contexts.document_D[row_R], position_N[true.row_Q[kept_R]]]
        columns += [true.mass_Q[kept_R], true.share_QK[kept_R, 0]]
        for x, temperature in enumerate(temperatures):
            text, set_metrics, surplus_NS, columns_Q = true.compare(tempered(log_q_NV, temperature), y_N)
            for key, value_N in text.items():
                of_text[key][x] += _sums(row_N, value_N, documents)
            for key, value_Q in set_metrics.items():
                of_sets[key][x] += true.by_document(value_Q, row_N, documents)
            surplus_DS = np.zeros((documents, sets))
            np.add.at(surplus_DS, row_N, surplus_NS)
            of_sets["joint_kl"][x] += surplus_DS
            columns += [column_Q[kept_R] for column_Q in columns_Q]
        kept.append(columns)
    of_text["excess"] = of_text["nll"] - truth["nll"]
    position_D = contexts.length_D.astype(np.float64)
    columns = [np.concatenate(column) for column in zip(*kept, strict=True)]
    all_kept = Kept(*columns[:5], *(np.stack(columns[first::3]) for first in (5, 6, 7)))
    return Scores(contexts.document_D, position_D, mass_DS, minority_mass_DS, of_sets, of_text, truth, all_kept)


class Partition:
    """The vocabulary as sets of synonyms and single words, which are the meanings that a text chooses between."""

    def __init__(self, sets: Sequence[SynonymSet], vocabulary: int) -> None:
        """Index disjoint sets."""
        width = max(len(one.tokens) for one in sets)
        padded = [[*one.tokens, *[-1] * (width - len(one.tokens))] for one in sets]
        self.token_SK: Ids = np.array(padded, dtype=np.int64)
        self.there_SK: Bools = self.token_SK >= 0
        self.single_V: Bools = ~np.isin(np.arange(vocabulary), self.token_SK)
        self.control_S: Bools = np.array([one.kind in CONTROL_KINDS for one in sets])

    def words(self, log_q_NV: Floats) -> Floats:
        """(N, S, K): the words of the sets, minus infinity where a set has fewer."""
        log_q_NSK: Floats = np.where(self.there_SK, log_q_NV[:, self.token_SK], -np.inf)
        return log_q_NSK


class Truth:
    """The true distributions of a batch and, where a set can occur, its joint mass and the shares of its words."""

    def __init__(self, p_NV: Floats, partition: Partition) -> None:
        """Split ``p_NV`` into sets."""
        self.partition, self.p_NV = partition, p_NV
        with np.errstate(divide="ignore"):
            self.log_p_NV: Floats = np.log(p_NV)
        log_p_NSK = partition.words(self.log_p_NV)
        log_m_NS = np.logaddexp.reduce(log_p_NSK, axis=2)
        self.row_Q, self.set_Q = np.nonzero(log_m_NS > -np.inf)
        self.mass_Q: Floats = np.exp(log_m_NS[self.row_Q, self.set_Q])
        self.log_share_QK: Floats = log_p_NSK[self.row_Q, self.set_Q] - log_m_NS[self.row_Q, self.set_Q, None]
        self.share_QK: Floats = np.exp(self.log_share_QK)
        present_QK = np.where(partition.there_SK[self.set_Q], self.share_QK, np.inf)
        self.least_Q = present_QK.argmin(axis=1)  # the least probable word, unless all are equally probable
        self.tied_Q: Bools = self.share_QK.max(axis=1) - present_QK.min(axis=1) <= _TIED

    def by_document(self, value_Q: Floats, row_N: Ids, documents: int) -> Floats:
        """(D, S): sums over the contexts of each document."""
        sets = len(self.partition.token_SK)
        cell_Q = row_N[self.row_Q] * sets + self.set_Q
        return _sums(cell_Q, value_Q, documents * sets).reshape(documents, sets)

    def compare(
        self, log_q_NV: Floats, y_N: Ids
    ) -> tuple[dict[str, Floats], dict[str, Floats], Floats, tuple[Floats, Floats, Floats]]:
        """A predictor against the truth: metrics of the text (N,); of sets, times m, (Q,); M - m (N, S); columns (Q,) of Kept.

        M - m is the rest of joint KL, which also counts where the set cannot occur.
        """
        partition, row_Q, set_Q, m_Q = self.partition, self.row_Q, self.set_Q, self.mass_Q
        log_q_NSK = partition.words(log_q_NV)
        with np.errstate(invalid="ignore"):
            log_mass_NS = np.logaddexp.reduce(log_q_NSK, axis=2)
            log_mass_Q = log_mass_NS[row_Q, set_Q]
            log_share_QK = log_q_NSK[row_Q, set_Q] - log_mass_Q[:, None]
            gap_QK = self.log_share_QK - log_share_QK
            term_NV = products(self.p_NV, self.log_p_NV - log_q_NV)
        gap_QK[log_mass_Q == -np.inf] = np.inf  # a set without probability has no split
        split_kl_Q = dot(self.share_QK, gap_QK)
        least = np.arange(len(row_Q)), self.least_Q
        loss_Q = np.where(self.tied_Q, 0.0, np.exp(log_share_QK[least]) - self.share_QK[least])
        mass_Q = np.exp(log_mass_Q)
        log_fracture_Q = m_Q * (np.log(m_Q) - log_mass_Q)
        of_sets = {
            "split_kl": m_Q * split_kl_Q,
            "log_fracture": log_fracture_Q,
            "fracture": m_Q * (m_Q - mass_Q),
            "minority": m_Q * loss_Q,
            "joint_kl": log_fracture_Q,
        }
        n = len(y_N)
        single = partition.single_V
        control_Q = partition.control_S[set_Q]
        of_text: dict[str, Floats] = {
            "kl": term_NV.sum(axis=1),
            "between": term_NV[:, single].sum(axis=1) + _sums(row_Q, log_fracture_Q, n),
            "within_true": _sums(row_Q[~control_Q], of_sets["split_kl"][~control_Q], n),
            "within_control": _sums(row_Q[control_Q], of_sets["split_kl"][control_Q], n),
            "nll": -log_q_NV[np.arange(n), y_N],
            "entropy": -dot(np.exp(log_q_NV), log_q_NV),
        }
        surplus_NS = np.exp(log_mass_NS)
        surplus_NS[row_Q, set_Q] -= m_Q
        return of_text, of_sets, surplus_NS, (mass_Q, np.exp(log_share_QK[:, 0]), split_kl_Q)


def _sums(place_N: Ids, value_N: Floats, places: int) -> Floats:
    """(places,): the sum of the values at each place."""
    return np.bincount(place_N, value_N, places).astype(np.float64)


class TruthCalibration(Calibration):
    """A predictor's distributions on a few documents, from which its temperatures are found.

    Its NLL is the expected one, under the true distributions: no sampled word adds noise to the best temperature.
    """

    precision = 1e-12

    def __init__(self, predict: Predictor, grammar: Grammar, contexts: Contexts) -> None:
        """Evaluate ``predict`` on ``contexts``, and keep all of its distributions in memory."""
        batches = [(x_BT, valid_BT) for _, x_BT, valid_BT in contexts.batches(len(grammar.words))]
        self._log_q_NV = np.concatenate([predict(x_BT)[valid_BT] for x_BT, valid_BT in batches])
        p_NV = np.concatenate([grammar.next_distribution(x_BT)[valid_BT] for x_BT, valid_BT in batches])
        self._true_mean = float(dot(p_NV, self._log_q_NV).mean())  # of ln q under the truth

    def means(self, beta: float) -> tuple[float, float, float]:
        """See :meth:`Calibration.means`; the slope is the mean of ln q under q^beta, normalised, minus that under the truth."""
        z_NV = beta * self._log_q_NV
        top_N = z_NV.max(axis=1)
        weight_NV = np.exp(z_NV - top_N[:, None])
        total_N = weight_NV.sum(axis=1)
        mean = float((dot(weight_NV, self._log_q_NV) / total_N).mean())
        log_total = float((top_N + np.log(total_N)).mean())
        return mean - self._true_mean, log_total - beta * mean, log_total - beta * self._true_mean


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

"""How far a predictor's distributions lie from the true ones of the synonym grammar: on its sets, within them, in all.

Shapes: D documents, B rows of a batch, T positions, N positions that count, V vocabulary, S sets, K words of the largest
set, Q (position, set) pairs in which the set can come, R kept ones of these, X views.

In the context c a set has the true joint probability m and the predictor's M; within it the words have the true shares
p/m and the predictor's q/M. Every mean over contexts of a set is weighted by m: it is the exact expectation over the
contexts in which the set comes next, and does not depend on which of its words was drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.compare.metric import Metric
from data.grammar import Grammar, SynonymSet

from .contexts import Contexts, Floats, Ids, Predictor, dot, entropies, products, tempered

TRUE_KINDS = ("equal", "unequal", "rare", "contextual")
"""Kinds of true synonyms."""
CONTROL_KINDS = ("near", "antonym")
"""Kinds whose words share contexts and lead to different ones: which of them comes is a part of the meaning, not of the
style. The topic decides between near-synonyms; antonyms are equally probable everywhere."""
KINDS = TRUE_KINDS + CONTROL_KINDS

KEPT_MASS = 0.01
"""Contexts in which a set is at least this probable are kept one by one; about half of all mass lies in them."""

_TIED = 1e-9  # shares that differ by less are equal: filtering leaves the last digits to rounding
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


# ----------------------------------------------------------------------------------------------------------- the scores


@dataclass(frozen=True)
class Kept:
    """Single contexts of single sets, the true ones first; the shares are those of the set's first word."""

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
    """Positions counted."""
    mass_DS: Floats
    """Sum of the true joint mass: how often the set is expected to come."""
    minority_mass_DS: Floats
    """The same over the contexts in which one of its words is the least probable."""
    of_sets: dict[str, Floats]
    """For each of SET_METRICS (X, D, S): divided by ``weight_DS`` it is the metric."""
    of_text: dict[str, Floats]
    """For each of TEXT_METRICS (X, D): divided by ``position_D`` it is the metric."""
    truth: dict[str, Floats]
    """(D,) sums of the truth's own "nll" and "entropy"."""
    kept: Kept

    def weight_DS(self, key: str) -> Floats:
        """What the sums of a metric of sets are divided by."""
        return self.minority_mass_DS if key == "minority" else self.mass_DS


def measure(predict: Predictor, grammar: Grammar, contexts: Contexts, temperatures: Sequence[float]) -> Scores:
    """Hold ``predict``, at each of the temperatures, against the truth, some thousand contexts at a time.

    A temperature of NaN gives NaN. A predictor that gives no probability to what can come gets infinities.
    """
    documents, views, sets = len(contexts.length_D), len(temperatures), len(grammar.sets)
    of_sets = {metric.key: np.zeros((views, documents, sets)) for metric in SET_METRICS}
    of_text = {metric.key: np.zeros((views, documents)) for metric in TEXT_METRICS}
    truth = {key: np.zeros(documents) for key in ("nll", "entropy")}
    mass_DS, minority_mass_DS = np.zeros((documents, sets)), np.zeros((documents, sets))
    kept: list[list[npt.NDArray[Any]]] = []
    partition = Partition(grammar.sets, len(grammar.words))
    for row_B, x_BT, valid_BT in contexts.batches(len(grammar.words)):
        row_N, position_N = (place[valid_BT] for place in np.broadcast_arrays(row_B[:, None], np.arange(x_BT.shape[1])))
        y_N = contexts.y_DT[row_N, position_N]
        true = Truth.of(grammar.next_distribution(x_BT)[valid_BT], partition)
        log_q_NV = predict(x_BT)[valid_BT]
        mass_DS += true.by_document(true.mass_Q, row_N, documents)
        minority_mass_DS += true.by_document(true.mass_Q * ~true.tied_Q, row_N, documents)
        truth["nll"] -= _sums(row_N, np.log(true.p_NV[np.arange(len(y_N)), y_N]), documents)
        truth["entropy"] -= _sums(row_N, dot(true.p_NV, true.log_p_NV), documents)
        chosen_R = np.flatnonzero(true.mass_Q >= KEPT_MASS)
        columns = [column[chosen_R] for column in (true.set_Q, row_N[true.row_Q], position_N[true.row_Q])]
        columns += [true.mass_Q[chosen_R], true.share_QK[chosen_R, 0]]
        for x, temperature in enumerate(temperatures):
            found = Found.of(tempered(log_q_NV, temperature), y_N, true)
            for key, value_N in found.of_text.items():
                of_text[key][x] += _sums(row_N, value_N, documents)
            for key, value_Q in found.of_sets.items():
                of_sets[key][x] += true.by_document(value_Q, row_N, documents)
            of_sets["joint_kl"][x] += _by_row(found.surplus_NS, row_N, documents)
            columns += [column[chosen_R] for column in (found.mass_Q, found.share_Q, found.split_kl_Q)]
        kept.append(columns)
    of_text["excess"] = of_text["nll"] - truth["nll"]
    position_D = contexts.length_D.astype(np.float64)
    all_kept = _kept([np.concatenate(column) for column in zip(*kept, strict=True)], contexts.document_D)
    return Scores(contexts.document_D, position_D, mass_DS, minority_mass_DS, of_sets, of_text, truth, all_kept)


class Partition:
    """The vocabulary as sets of words and single words: the meanings between which a choice comes first."""

    def __init__(self, sets: Sequence[SynonymSet], vocabulary: int) -> None:
        """Take disjoint sets."""
        width = max(len(one.tokens) for one in sets)
        padded = [[*one.tokens, *[-1] * (width - len(one.tokens))] for one in sets]
        self.token_SK: Ids = np.array(padded, dtype=np.int64)
        self.there_SK: npt.NDArray[np.bool_] = self.token_SK >= 0
        self.single_V: npt.NDArray[np.bool_] = ~np.isin(np.arange(vocabulary), self.token_SK)
        self.control_S: npt.NDArray[np.bool_] = np.array([one.kind in CONTROL_KINDS for one in sets])

    def words(self, log_q_NV: Floats) -> Floats:
        """(N, S, K): the words of the sets, minus infinity where a set has fewer."""
        log_q_NSK: Floats = np.where(self.there_SK, log_q_NV[:, self.token_SK], -np.inf)
        return log_q_NSK


@dataclass(frozen=True)
class Truth:
    """The true distributions of a batch and, where a set can come, its joint mass and the shares of its words."""

    partition: Partition
    p_NV: Floats
    log_p_NV: Floats
    row_Q: Ids
    set_Q: Ids
    mass_Q: Floats
    share_QK: Floats
    log_share_QK: Floats
    least_Q: Ids
    """Which word is the least probable."""
    tied_Q: npt.NDArray[np.bool_]
    """No word is: the words of the set are equally probable here."""

    @classmethod
    def of(cls, p_NV: Floats, partition: Partition) -> Truth:
        """Split ``p_NV`` into sets."""
        with np.errstate(divide="ignore"):
            log_p_NV = np.log(p_NV)
        log_p_NSK = partition.words(log_p_NV)
        log_m_NS = np.logaddexp.reduce(log_p_NSK, axis=2)
        row_Q, set_Q = np.nonzero(log_m_NS > -np.inf)
        log_share_QK = log_p_NSK[row_Q, set_Q] - log_m_NS[row_Q, set_Q, None]
        share_QK = np.exp(log_share_QK)
        present_QK = np.where(partition.there_SK[set_Q], share_QK, np.inf)
        least_Q = present_QK.argmin(axis=1)
        tied_Q = share_QK.max(axis=1) - present_QK.min(axis=1) <= _TIED
        mass_Q = np.exp(log_m_NS[row_Q, set_Q])
        return cls(partition, p_NV, log_p_NV, row_Q, set_Q, mass_Q, share_QK, log_share_QK, least_Q, tied_Q)

    def by_document(self, value_Q: Floats, row_N: Ids, documents: int) -> Floats:
        """(D, S): sums over the contexts of each document."""
        sets = len(self.partition.token_SK)
        cell_Q = row_N[self.row_Q] * sets + self.set_Q
        return _sums(cell_Q, value_Q, documents * sets).reshape(documents, sets)


@dataclass(frozen=True)
class Found:
    """A predictor against the truth of a batch; what is of sets is multiplied by m."""

    of_text: dict[str, Floats]
    """(N,) each."""
    of_sets: dict[str, Floats]
    """(Q,) each."""
    surplus_NS: Floats
    """M - m: the rest of joint KL, which counts where the set cannot come too."""
    mass_Q: Floats
    share_Q: Floats
    split_kl_Q: Floats

    @classmethod
    def of(cls, log_q_NV: Floats, y_N: Ids, true: Truth) -> Found:
        """Compare."""
        partition, row_Q, set_Q, m_Q = true.partition, true.row_Q, true.set_Q, true.mass_Q
        log_q_NSK = partition.words(log_q_NV)
        with np.errstate(invalid="ignore"):
            log_mass_NS = np.logaddexp.reduce(log_q_NSK, axis=2)
            log_mass_Q = log_mass_NS[row_Q, set_Q]
            log_share_QK = log_q_NSK[row_Q, set_Q] - log_mass_Q[:, None]
            gap_QK = true.log_share_QK - log_share_QK
            term_NV = products(true.p_NV, true.log_p_NV - log_q_NV)
        gap_QK[log_mass_Q == -np.inf] = np.inf  # of nothing there is no split
        split_kl_Q = dot(true.share_QK, gap_QK)
        least = np.arange(len(row_Q)), true.least_Q
        loss_Q = np.where(true.tied_Q, 0.0, np.exp(log_share_QK[least]) - true.share_QK[least])
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
            "entropy": entropies(log_q_NV),
        }
        surplus_NS = np.exp(log_mass_NS)
        surplus_NS[row_Q, set_Q] -= m_Q
        return cls(of_text, of_sets, surplus_NS, mass_Q, np.exp(log_share_QK[:, 0]), split_kl_Q)


def _kept(columns: list[npt.NDArray[Any]], document_D: Ids) -> Kept:
    set_R, row_R, position_R, mass_R, share_R, *views = columns
    mass, share, split_kl = (np.stack(views[first::3]) for first in range(3))
    return Kept(set_R, document_D[row_R], position_R, mass_R, share_R, mass, share, split_kl)


def _sums(place_N: Ids, value_N: Floats, places: int) -> Floats:
    """(places,): the sum of the values that belong to each place."""
    return np.bincount(place_N, value_N, places).astype(np.float64)


def _by_row(value_NS: Floats, row_N: Ids, documents: int) -> Floats:
    """(D, S): sums over the positions of each document."""
    sums_DS = np.zeros((documents, value_NS.shape[1]))
    np.add.at(sums_DS, row_N, value_NS)
    return sums_DS

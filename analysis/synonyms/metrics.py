"""The metrics of every query, computed from a model's word scores, and distances of output embeddings.

Shapes: M queries, n queries of one unit, K candidates, S candidates of some roles, X views.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.compare.metric import Metric
from analysis.compare.statistics import Floats, Ids, generalised_average_precision, ratio

from .encode import Encoded
from .score import WordScores
from .study import Role, Study

_LEFT = 1e-6
"""The least probability that the word must leave for a share of it to be defined: probabilities are sums in float32."""

_AUC = "share of the controls that are less probable than the synonym; 0.5: no preference"
_GAP = "generalised average precision of the ranking of accepted and rejected substitutes"
_SHARE = f"p(synonym) / (1 - p(word)): share of what the word leaves, if that is more than {_LEFT}"
METRICS = (
    Metric("auc", "rank AUC", ".3f", _AUC, True),
    Metric("auc_antonym", "AUC ant", ".3f", "the same against the word's antonyms", True),
    Metric("auc_rejected", "AUC rej", ".3f", "the same against rejected or dissimilar words", True),
    Metric("gap", "GAP", ".3f", _GAP, True),
    Metric("log10_rank", "lg rank", ".3f", "log10 of the synonym's rank among all tokens; single tokens only", True),
    Metric("log10_rank_control", "lg rank ctl", ".3f", "the same for the controls, mean", True),
    Metric("log_odds", "log-odds", ".3f", "ln p(synonym) minus the mean ln p(control), nats"),
    Metric("log_odds_antonym", "log-odds ant", ".3f", "the same against the antonyms"),
    Metric("log_odds_rejected", "log-odds rej", ".3f", "the same against rejected or dissimilar words"),
    Metric("share_synonym", "share syn", ".2e", _SHARE),
    Metric("share_control", "share ctl", ".2e", "the same for the controls, mean"),
    Metric("p_word", "p(word)", ".2e", "probability of the word that stands there"),
    Metric("p_synonym", "p(syn)", ".2e", "probability of its synonyms, together"),
    Metric("p_control", "p(ctl)", ".2e", "probability of a control, mean"),
    Metric("joint", "joint p", ".2e", "probability of the word and its synonyms together"),
    Metric("entropy", "entropy", ".3f", "entropy of the next token's distribution, nats"),
    Metric("nll_word", "NLL", ".3f", "-ln p(word), nats"),
)
KEYS = tuple(metric.key for metric in METRICS)
Values = dict[str, npt.NDArray[np.float32]]
"""By metric: (X, M), NaN where a query has no such value."""


def column(key: str, view: str) -> str:
    """The name of a metric's column in a table that has all views."""
    return key if view == "raw" else f"{key}_{view}"


def compute_metrics(study: Study, scores: WordScores) -> Values:
    """All metrics of all queries."""
    shape = scores.entropy_XM.shape
    found = {key: np.full(shape, np.nan, dtype=np.float32) for key in KEYS}
    found["entropy"][:] = scores.entropy_XM
    order_M = np.argsort(study.unit_M, kind="stable")
    bounds = np.searchsorted(study.unit_M[order_M], np.arange(len(study.units) + 1))
    for index, unit in enumerate(study.units):
        query_n = order_M[bounds[index] : bounds[index + 1]]
        if not len(query_n):
            continue
        candidate_nK = scores.start_M[query_n][:, None] + np.arange(len(unit.candidates))
        role_K = np.array([candidate.role for candidate in unit.candidates])
        log_p_XnK = scores.log_p_XA[:, candidate_nK]
        for key, value_Xn in _of_unit(log_p_XnK, scores.rank_A[candidate_nK], role_K).items():
            found[key][:, query_n] = value_Xn
        weight_K = np.array([candidate.weight for candidate in unit.candidates])
        if (role_K == Role.REJECTED).any():
            found["gap"][:, query_n] = _gap(log_p_XnK, role_K, weight_K)
    return found


def _of_unit(log_p_XnK: Floats, rank_nK: Ids, role_K: Ids) -> dict[str, Floats]:
    """The metrics of the queries of one unit; (X, n) each, or broadcastable to it."""
    log_word_Xn = log_p_XnK[..., 0]
    p_word_Xn = np.exp(log_word_Xn)
    left_Xn = -np.expm1(log_word_Xn)
    left_Xn = np.where(left_Xn > _LEFT, left_Xn, np.nan)
    synonym, control = role_K == Role.SYNONYM, role_K == Role.CONTROL
    log_synonym_XnS, log_control_XnS = log_p_XnK[..., synonym], log_p_XnK[..., control]
    p_synonym_Xn, p_control_Xn = np.exp(log_synonym_XnS).sum(-1), _mean(np.exp(log_control_XnS))
    found = {
        "share_synonym": p_synonym_Xn / left_Xn,
        "share_control": p_control_Xn / left_Xn,
        "log10_rank": _mean(_log10_rank(rank_nK[:, synonym])),
        "log10_rank_control": _mean(_log10_rank(rank_nK[:, control])),
        "p_word": p_word_Xn,
        "p_synonym": p_synonym_Xn,
        "p_control": p_control_Xn,
        "joint": p_word_Xn + p_synonym_Xn,
        "nll_word": -log_word_Xn,
    }
    for role, suffix in ((Role.CONTROL, ""), (Role.ANTONYM, "_antonym"), (Role.REJECTED, "_rejected")):
        others_XnS = log_p_XnK[..., role_K == role]
        if others_XnS.shape[-1]:
            with np.errstate(invalid="ignore"):  # neither has any probability
                found[f"log_odds{suffix}"] = _mean(log_synonym_XnS) - _mean(others_XnS)
            found[f"auc{suffix}"] = _auc(log_synonym_XnS, others_XnS)
    return found


def _auc(accepted_XnS: Floats, others_XnS: Floats) -> Floats:
    """The share of (accepted, other) pairs in which the accepted one scores higher, ties as half; NaN if one is NaN."""
    one, other = accepted_XnS[..., :, None], others_XnS[..., None, :]
    won = np.where(np.isnan(one) | np.isnan(other), np.nan, (one > other) + 0.5 * (one == other))
    mean: Floats = won.mean((-1, -2))
    return mean


def _gap(log_p_XnK: Floats, role_K: Ids, weight_K: Floats) -> Floats:
    named = (role_K == Role.SYNONYM) | (role_K == Role.UNDECIDED)
    judged = named | (role_K == Role.REJECTED)
    gold_K = np.where(named, weight_K, 0.0)[judged]
    return np.apply_along_axis(generalised_average_precision, -1, log_p_XnK[..., judged], gold_K)


def _log10_rank(rank_nS: Ids) -> Floats:
    return np.where(rank_nS > 0, np.log10(np.maximum(rank_nS, 1)), np.nan)


def _mean(values: Floats) -> Floats:
    """The mean over the last axis; NaN if it is empty or any value is NaN."""
    mean: Floats = values.mean(-1) if values.shape[-1] else np.full(values.shape[:-1], np.nan)
    return mean


def distance_ratios(model: Any, encoded: Encoded) -> Floats:
    """(P,): ||w_word - w_synonym|| / mean ||w_word - w_control|| of the output embeddings; NaN if a word is not one token.

    Below 1 synonyms lie nearer to each other than words that are only as frequent. Scaling all embeddings changes nothing.
    Units written differently are averaged within an item.
    """
    weight_VD = model.get_output_embeddings().weight.detach().float().cpu().numpy()
    study = encoded.study
    total_P, count_P = np.zeros(len(study.items)), np.zeros(len(study.items))
    for unit, tree in zip(study.units, encoded.trees, strict=True):
        single_K = np.array([leaf >= 0 and tree.depth_E[leaf] == 1 for leaf in tree.leaf_K])
        role_K = np.array([candidate.role for candidate in unit.candidates])
        synonyms, controls = single_K & (role_K == Role.SYNONYM), single_K & (role_K == Role.CONTROL)
        if not (single_K[0] and synonyms.any() and controls.any()):
            continue
        w_KD = weight_VD[tree.token_E[tree.leaf_K]]
        distance_K = np.linalg.norm(w_KD - w_KD[0], axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):  # if all embeddings have become equal
            total_P[unit.item] += distance_K[synonyms].mean() / distance_K[controls].mean()
        count_P[unit.item] += 1
    return ratio(total_P, count_P)

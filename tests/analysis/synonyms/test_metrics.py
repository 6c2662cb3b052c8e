from __future__ import annotations

import math
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest

from analysis.synonyms.metrics import KEYS, METRICS, Values, compute_metrics
from analysis.synonyms.score import WordScores
from analysis.synonyms.study import Role, Study, Unit
from tests.analysis.made import scores_of, study_of, unit

Floats = npt.NDArray[np.float64]
W, S, C, A, R, U = Role
NAN = math.nan
UNITS = [
    unit(0, "plain", S, C, C, C, C, C),
    unit(0, "several", S, C, S, C, R, A, R, A, weights=[0.5, 1, 2.0]),
    unit(1, "judged", S, S, R, R, R, C, weights=[0.9, 0.1]),
    unit(2, "bare", S),
    unit(3, "doubtful", S, U, U, R, C, weights=[0.8, 0.3, 0.1]),
]
RANKS = {metric.key for metric in METRICS if metric.ranks}


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else NAN


def naive(unit: Unit, log_p: list[float], rank: list[int], entropy: float) -> dict[str, float]:
    """The metrics of one query, each from what its definition says."""
    of = {role: [i for i, each in enumerate(unit.candidates) if each.role == role] for role in Role}
    p = [math.exp(x) for x in log_p]
    joint = sum(p[i] for i in of[S])
    left = 1 - p[0]
    found = {
        "p_word": p[0],
        "p_synonym": joint,
        "p_control": mean([p[i] for i in of[C]]),
        "joint": p[0] + joint,
        "nll_word": -log_p[0],
        "entropy": entropy,
        "share_synonym": joint / left if left > 1e-6 else NAN,
        "share_control": mean([p[i] for i in of[C]]) / left if left > 1e-6 else NAN,
    }
    for role, key in ((S, "log10_rank"), (C, "log10_rank_control")):
        found[key] = mean([math.log10(rank[i]) if rank[i] else NAN for i in of[role]])
    for role, suffix in ((C, ""), (A, "_antonym"), (R, "_rejected")):
        found[f"log_odds{suffix}"] = mean([log_p[i] for i in of[S]]) - mean([log_p[i] for i in of[role]])
        won = [
            NAN if math.isnan(log_p[i] + log_p[j]) else (1.0 if log_p[i] > log_p[j] else 0.5 * (log_p[i] == log_p[j]))
            for i, j in product(of[S], of[role])
        ]
        found[f"auc{suffix}"] = mean(won)
    return found | {"gap": naive_gap(unit, log_p, of[S] + of[U], of[R])}


def naive_gap(unit: Unit, log_p: list[float], accepted: list[int], rejected: list[int]) -> float:
    """Kishida's: sums of mean gold weights down to each accepted candidate, equal scores ordered against the model."""
    if not rejected or any(math.isnan(log_p[i]) for i in (*accepted, *rejected)):
        return NAN
    gold = {i: unit.candidates[i].weight for i in accepted} | dict.fromkeys(rejected, 0.0)

    def gained(order: list[int]) -> float:
        return sum(mean([gold[j] for j in order[: n + 1]]) for n, i in enumerate(order) if gold[i] > 0)

    best = sorted(gold, key=lambda i: -gold[i])
    return gained(sorted(gold, key=lambda i: (-log_p[i], gold[i]))) / gained(best)


def evaluated(
    study: Study, log_p: dict[int, Floats], rank: dict[int, npt.NDArray[np.int64]]
) -> tuple[WordScores, Values]:
    """Scores with log p (X, K) and ranks (K,) for each query, and their metrics."""
    numbers = iter(range(len(study.unit_M)))

    def fill(_: Unit) -> tuple[Floats, npt.NDArray[np.int64]]:
        number = next(numbers)
        return log_p[number], rank[number]

    entropy_XM = np.random.default_rng(9).uniform(0, 9, (len(log_p[0]), len(study.unit_M)))
    scores = scores_of(study, fill, entropy_XM)
    return scores, compute_metrics(study, scores)


def expect(study: Study, scores: WordScores, found: Values) -> None:
    """That every metric of every query is its naive definition, NaN included."""
    assert set(found) == set(KEYS)
    for m, x in np.ndindex(len(study.unit_M), len(scores.log_p_XA)):
        span = slice(scores.start_M[m], scores.start_M[m + 1])
        log_p, rank = scores.log_p_XA[x, span].tolist(), scores.rank_A[span].tolist()
        expected = naive(study.units[study.unit_M[m]], log_p, rank, float(scores.entropy_XM[x, m]))
        for key in KEYS:
            assert found[key][x, m] == pytest.approx(expected[key], rel=1e-6, abs=1e-30, nan_ok=True), (key, m, x)


def test_every_metric_is_its_definition_with_ties_and_without_some_roles() -> None:
    rng = np.random.default_rng(0)
    study = study_of(UNITS, rng.permutation(np.tile(np.arange(len(UNITS)), 15)).tolist())
    sizes = [len(study.units[index].candidates) for index in study.unit_M]
    log_p = {m: -rng.integers(1, 9, (2, size)) / 2 for m, size in enumerate(sizes)}  # so few values that many tie
    rank = {m: rng.integers(0, 400, size) for m, size in enumerate(sizes)}  # 0: of more than one token
    scores, found = evaluated(study, log_p, rank)
    expect(study, scores, found)
    plain_M = study.unit_M == 0
    absent = {key for key in KEYS if np.isnan(found[key][:, plain_M]).all()}
    assert absent == {"gap", "auc_antonym", "auc_rejected", "log_odds_antonym", "log_odds_rejected"}


def test_a_candidate_that_cannot_be_encoded_leaves_out_what_depends_on_it_alone() -> None:
    rng = np.random.default_rng(1)
    for missing in range(len(UNITS[1].candidates)):
        study = study_of(UNITS, [1])
        log_p_XK = -rng.uniform(1, 9, (2, len(UNITS[1].candidates)))
        log_p_XK[:, missing] = NAN
        scores, found = evaluated(study, {0: log_p_XK}, {0: np.where(np.isnan(log_p_XK[0]), 0, 7)})
        expect(study, scores, found)
        assert np.isfinite(found["entropy"]).all()
        role = UNITS[1].candidates[missing].role
        assert np.isnan(found["log_odds"]).all() == (role in (S, C))
        assert np.isnan(found["p_word"]).all() == (role == W)


@pytest.mark.parametrize("log_word", [0.0, -1e-9, 1e-7])
def test_a_word_that_is_certain_leaves_no_share_and_everything_else_is_known(log_word: float) -> None:
    log_p_XK = np.concatenate([np.full((1, 1), log_word), -np.arange(20.0, 26.0)[None]], axis=1)
    _, found = evaluated(study_of(UNITS, [0]), {0: log_p_XK}, {0: np.arange(1, 8)})
    assert np.isnan(found["share_synonym"]).all() and np.isnan(found["share_control"]).all()
    assert found["p_word"] == pytest.approx(1.0) and found["nll_word"] == pytest.approx(0.0, abs=1e-6)
    assert found["log_odds"] == pytest.approx(3.0)
    assert found["auc"] == 1.0


def test_a_candidate_without_any_probability_is_the_least_probable() -> None:
    log_p_XK = np.array([[-1.0, -30.0, *[-np.inf] * 5]])
    _, found = evaluated(study_of(UNITS, [0]), {0: log_p_XK}, {0: np.arange(1, 8)})
    assert found["auc"] == 1.0
    _, found = evaluated(study_of(UNITS, [0]), {0: np.array([[-1.0, *[-np.inf] * 6]])}, {0: np.arange(1, 8)})
    assert found["auc"] == 0.5


def test_a_temperature_changes_no_rank_and_raises_the_synonym_whatever_the_model_knows() -> None:
    rng = np.random.default_rng(2)
    tokens = 400
    study = study_of(UNITS, np.tile(np.arange(len(UNITS)), 30).tolist())
    log_p: dict[int, Floats] = {}
    rank: dict[int, npt.NDArray[np.int64]] = {}
    for m, index in enumerate(study.unit_M):
        z_V = rng.normal(0, 3, tokens)
        z_V[0] = z_V.max() + 4  # the word is likely
        chosen = np.concatenate([[0], rng.choice(np.arange(1, tokens), len(study.units[index].candidates) - 1, False)])
        logits_XV = z_V / np.array([[1.0], [2.0], [5.0]])
        log_p_XV = logits_XV - np.log(np.exp(logits_XV).sum(-1, keepdims=True))
        log_p[m], rank[m] = log_p_XV[:, chosen], 1 + (z_V > z_V[chosen, None]).sum(-1)
    _, found = evaluated(study, log_p, rank)
    for key in sorted(RANKS):
        np.testing.assert_array_equal(found[key][1], found[key][0])
        np.testing.assert_array_equal(found[key][2], found[key][0])
    p_XM = found["p_synonym"]
    assert p_XM[1].mean() > 2 * p_XM[0].mean()  # why raw mass never stands alone

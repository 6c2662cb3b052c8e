"""The oracle is at no distance from the truth, no cheat is, and a wrong split is distinguished from missing mass."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest

from analysis.grammar.study import Contexts, Predictor, contexts_of
from analysis.grammar.truth import (
    CONTROL_KINDS,
    KEPT_MASS,
    SET_METRICS,
    TEXT_METRICS,
    Scores,
    TruthCalibration,
    evaluate,
    tempered,
)
from data.grammar import Grammar
from tests.data.unigram import unigram_of

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
LENGTH = 40


@pytest.fixture(scope="module")
def grammar() -> Grammar:
    return Grammar(3)


@cache
def sample(grammar: Grammar) -> list[Ids]:
    return list(grammar.sample(30, seed=5))


def drawn(grammar: Grammar, first: int, last: int, length: int = LENGTH) -> Contexts:
    """Documents of the sample: those from ``first`` to before ``last``."""
    documents = sample(grammar)
    starts = np.cumsum([0, *(len(document) for document in documents)])[:-1]
    return contexts_of(np.concatenate(documents), starts, np.arange(first, last), length, end_of_text=0)


@pytest.fixture(scope="module")
def contexts(grammar: Grammar) -> Contexts:
    return drawn(grammar, 0, 20)


@pytest.fixture(scope="module")
def others(grammar: Grammar) -> Contexts:
    return drawn(grammar, 20, 25)


def log(p: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        logarithm: Floats = np.log(p)
    return logarithm


def changed(grammar: Grammar, change: Callable[[Floats], Floats]) -> Predictor:
    """The oracle with its probabilities changed, then normalised."""

    def predict(x_BT: Ids) -> Floats:
        q_BTV = change(grammar.next_distribution(x_BT))
        return log(q_BTV / q_BTV.sum(axis=-1, keepdims=True))

    return predict


def oracle(grammar: Grammar) -> Predictor:
    return lambda x_BT: log(grammar.next_distribution(x_BT))


def flattened(grammar: Grammar) -> Predictor:
    return changed(grammar, lambda p: p ** (1 / 2))


def cheats(grammar: Grammar) -> dict[str, Predictor]:
    return {
        "flattened": flattened(grammar),
        "sharpened": changed(grammar, lambda p: p**2),
        "unigram": changed(grammar, lambda p: np.broadcast_to(unigram_of(grammar), p.shape)),
        "frequency": changed(grammar, lambda p: p * unigram_of(grammar) ** 0.5),
    }


def noisy(grammar: Grammar) -> Predictor:
    """What a model may say: everything a little wrong, and nothing impossible."""

    def predict(x_BT: Ids) -> Floats:
        noise = np.random.default_rng(1).normal(0, 0.7, (x_BT.shape[1], len(grammar.words)))
        q_BTV = (grammar.next_distribution(x_BT) + 1e-5) * np.exp(noise)
        return log(q_BTV / q_BTV.sum(axis=-1, keepdims=True))

    return predict


def of_sets(scores: Scores, key: str, grammar: Grammar, *kinds: str, view: int = 0) -> float:
    chosen = [one.kind in kinds if kinds else one.kind not in CONTROL_KINDS for one in grammar.sets]
    return float(scores.of_sets[key][view][:, chosen].sum() / scores.weight_DS(key)[:, chosen].sum())


def of_text(scores: Scores, key: str, view: int = 0) -> float:
    return float(scores.of_text[key][view].sum() / scores.position_D.sum())


# ------------------------------------------------------------------------------------------------ the truth and cheats


def test_the_oracle_is_at_no_distance_from_the_truth_in_any_view(
    grammar: Grammar, contexts: Contexts, others: Contexts
) -> None:
    calibration = TruthCalibration(oracle(grammar), grammar, others)
    temperatures = [1.0, calibration.best(), calibration.matching(calibration.entropy())]
    assert temperatures == pytest.approx([1, 1, 1], abs=1e-9)
    scores = evaluate(oracle(grammar), grammar, contexts, temperatures)
    for metric in SET_METRICS:
        np.testing.assert_allclose(scores.of_sets[metric.key], 0, atol=1e-9)
    for key in ("kl", "between", "within_true", "within_control", "excess"):
        np.testing.assert_allclose(scores.of_text[key], 0, atol=1e-8)
    for key in ("nll", "entropy"):
        np.testing.assert_allclose(scores.of_text[key], np.tile(scores.truth[key], (3, 1)), rtol=1e-8)
    np.testing.assert_allclose(scores.kept.model_mass_XR, np.tile(scores.kept.mass_R, (3, 1)), rtol=1e-8)
    np.testing.assert_allclose(scores.kept.model_share_XR, np.tile(scores.kept.share_R, (3, 1)), rtol=1e-8)


@pytest.mark.parametrize("name", ["flattened", "sharpened", "unigram", "frequency"])
def test_no_cheat_is_rewarded(grammar: Grammar, contexts: Contexts, name: str) -> None:
    scores = evaluate(cheats(grammar)[name], grammar, contexts, [1.0])
    assert of_text(scores, "kl") > 0.05
    assert of_text(scores, "excess") > 0.05
    assert abs(of_sets(scores, "log_fracture", grammar)) > 0.05
    assert of_sets(scores, "joint_kl", grammar) > 0.05
    assert of_sets(scores, "split_kl", grammar) > 0.005
    for kind in ("equal", "unequal", "rare", "contextual", *CONTROL_KINDS):
        assert of_sets(scores, "joint_kl", grammar, kind) > 0.01


def test_flattening_gives_the_minority_too_much_and_sharpening_too_little(grammar: Grammar, contexts: Contexts) -> None:
    found = cheats(grammar)
    flat, sharp, biased = (
        evaluate(found[name], grammar, contexts, [1.0]) for name in ("flattened", "sharpened", "frequency")
    )
    for kind in ("unequal", "rare"):
        assert of_sets(flat, "minority", grammar, kind) > 0.03
        assert of_sets(sharp, "minority", grammar, kind) < -0.01
        assert of_sets(biased, "minority", grammar, kind) < -0.01
    # 0.8 and 0.2 become sqrt(0.8) and sqrt(0.2), normalised: 2/3 and 1/3
    assert of_sets(flat, "minority", grammar, "unequal") == pytest.approx(1 / 3 - 0.2)
    expected = 0.8 * math.log(0.8 / (2 / 3)) + 0.2 * math.log(0.2 / (1 / 3))
    assert of_sets(flat, "split_kl", grammar, "unequal") == pytest.approx(expected)
    assert of_sets(flat, "split_kl", grammar, "equal") == pytest.approx(0, abs=1e-12)
    assert flat.minority_mass_DS[:, [one.kind == "equal" for one in grammar.sets]].sum() == 0


def test_the_fitted_temperature_undoes_flattening_exactly(
    grammar: Grammar, contexts: Contexts, others: Contexts
) -> None:
    calibration = TruthCalibration(flattened(grammar), grammar, others)
    assert calibration.best() == pytest.approx(0.5, rel=1e-9)
    scores = evaluate(flattened(grammar), grammar, contexts, [1.0, calibration.best()])
    for metric in SET_METRICS:
        assert np.abs(scores.of_sets[metric.key][0]).max() > 1e-3
        np.testing.assert_allclose(scores.of_sets[metric.key][1], 0, atol=1e-9)
    np.testing.assert_allclose(scores.of_text["kl"][1], 0, atol=1e-9)


def test_the_fitted_temperature_has_the_lowest_expected_nll(grammar: Grammar, others: Contexts) -> None:
    predict = noisy(grammar)
    best = TruthCalibration(predict, grammar, others).best()
    scores = evaluate(predict, grammar, others, [best * factor for factor in (0.99, 1, 1.01)])
    lower, at, higher = scores.of_text["kl"].sum(axis=1)
    assert at < min(lower, higher)


def test_the_matched_temperature_gives_the_entropy_asked_for(grammar: Grammar, others: Contexts) -> None:
    calibration = TruthCalibration(noisy(grammar), grammar, others)
    for entropy in (0.5, calibration.entropy(), 4.0):
        temperature = calibration.matching(entropy)
        scores = evaluate(noisy(grammar), grammar, others, [temperature])
        assert of_text(scores, "entropy") == pytest.approx(entropy, rel=1e-9)
    assert math.isnan(calibration.matching(math.log(len(grammar.words))))
    assert math.isnan(calibration.matching(0.0))


def test_a_temperature_that_does_not_exist_gives_nan_and_not_a_score(grammar: Grammar, contexts: Contexts) -> None:
    scores = evaluate(noisy(grammar), grammar, contexts, [1.0, math.nan])
    for metric in SET_METRICS:
        came = scores.weight_DS(metric.key) > 0
        assert np.isfinite(scores.of_sets[metric.key][0]).all()
        assert np.isnan(scores.of_sets[metric.key][1][came]).all()
    for metric in TEXT_METRICS:
        assert np.isnan(scores.of_text[metric.key][1]).all()


# ------------------------------------------------------------------------------------- what is torn, what is missing


def test_mass_heaped_on_one_word_is_torn_and_not_missing(grammar: Grammar, contexts: Contexts) -> None:
    left = 1e-4  # of the set's mass, to the other words

    def heaped(p: Floats) -> Floats:
        q = p.copy()
        for one in grammar.sets:
            words = list(one.tokens)
            most = words[int(np.argmax(unigram_of(grammar)[words]))]
            rest = [word for word in words if word != most]
            q[..., rest] = left * p[..., words].sum(axis=-1, keepdims=True) / len(rest)
            q[..., most] = (1 - left) * p[..., words].sum(axis=-1)
        return q

    scores = evaluate(changed(grammar, heaped), grammar, contexts, [1.0])
    for key in ("fracture", "log_fracture", "joint_kl"):
        np.testing.assert_allclose(scores.of_sets[key], 0, atol=1e-9)
    assert of_text(scores, "between") == pytest.approx(0, abs=1e-9)
    halves = 0.5 * math.log(0.5 / left) + 0.5 * math.log(0.5 / (1 - left))
    assert of_sets(scores, "split_kl", grammar, "antonym") == pytest.approx(halves)
    assert of_sets(scores, "split_kl", grammar, "unequal") > 1
    assert of_sets(scores, "minority", grammar, "unequal") == pytest.approx(left - 0.2)


def test_a_word_without_any_probability_is_infinitely_torn(grammar: Grammar, contexts: Contexts) -> None:
    words = list(next(one for one in grammar.sets if one.kind == "unequal").tokens)
    scores = evaluate(
        changed(grammar, lambda p: np.where(np.arange(p.shape[-1]) == words[1], 0, p)), grammar, contexts, [1.0]
    )
    assert of_text(scores, "kl") == of_text(scores, "within_true") == math.inf
    assert math.isfinite(of_text(scores, "between"))
    gone = evaluate(
        changed(grammar, lambda p: np.where(np.isin(np.arange(p.shape[-1]), words), 0, p)), grammar, contexts, [1.0]
    )
    assert of_text(gone, "kl") == of_text(gone, "between") == of_sets(gone, "log_fracture", grammar) == math.inf


def test_mass_taken_from_the_sets_is_missing_and_not_torn(grammar: Grammar, contexts: Contexts) -> None:
    in_sets = np.isin(np.arange(len(grammar.words)), [token for one in grammar.sets for token in one.tokens])

    def taken(p: Floats) -> Floats:
        inside = p[..., in_sets].sum(axis=-1, keepdims=True)
        return np.where(in_sets, p / 2, p * (1 - inside / 2) / (1 - inside))

    scores = evaluate(changed(grammar, taken), grammar, contexts, [1.0])
    for key in ("split_kl", "minority"):
        np.testing.assert_allclose(scores.of_sets[key], 0, atol=1e-9)
    assert of_text(scores, "within_true") == pytest.approx(0, abs=1e-9)
    assert of_text(scores, "between") == pytest.approx(of_text(scores, "kl"))
    assert of_sets(scores, "log_fracture", grammar) == pytest.approx(math.log(2))
    assert of_sets(scores, "joint_kl", grammar) == pytest.approx(math.log(2) - 1 / 2)
    assert of_sets(scores, "fracture", grammar) > 0


# ------------------------------------------------------------------------------------------------------- definitions


def test_the_scores_are_those_of_the_definitions_and_kl_is_the_sum_of_its_parts(grammar: Grammar) -> None:
    few, temperature = drawn(grammar, 3, 6, 20), 1.7
    scores = evaluate(noisy(grammar), grammar, few, [1.0, temperature])
    parts = ("kl", "between", "within_true", "within_control")
    for d, length in enumerate(few.length_D):
        x = few.x_DT[d : d + 1, :length]
        p, q = grammar.next_distribution(x)[0], np.exp(noisy(grammar)(x)[0]) ** (1 / temperature)
        q /= q.sum(axis=1, keepdims=True)
        text = dict.fromkeys([metric.key for metric in TEXT_METRICS], 0.0)
        for t in range(length):
            text["kl"] += math.fsum(a * math.log(a / b) for a, b in zip(p[t], q[t], strict=True) if a > 0)
            text["nll"] -= math.log(q[t, few.y_DT[d, t]])
            text["excess"] -= math.log(q[t, few.y_DT[d, t]] / p[t, few.y_DT[d, t]])
            text["entropy"] -= math.fsum(b * math.log(b) for b in q[t])
            in_set = {token for one in grammar.sets for token in one.tokens}
            text["between"] += sum(a * math.log(a / q[t, v]) for v, a in enumerate(p[t]) if a > 0 and v not in in_set)
        for s, one in enumerate(grammar.sets):
            found = dict.fromkeys([metric.key for metric in SET_METRICS], 0.0)
            mass = minority = 0.0
            for t in range(length):
                a, b = p[t, list(one.tokens)], q[t, list(one.tokens)]
                m, model = sum(a), sum(b)
                found["joint_kl"] += model - m
                if m == 0:
                    continue
                split = sum(i / m * math.log((i / m) / (j / model)) for i, j in zip(a, b, strict=True))
                mass += m
                found["joint_kl"] += m * math.log(m / model)
                found["fracture"] += m * (m - model)
                found["log_fracture"] += m * math.log(m / model)
                found["split_kl"] += m * split
                if max(a) - min(a) > 1e-9 * m:
                    minority += m
                    least = list(a).index(min(a))
                    found["minority"] += m * (b[least] / model - a[least] / m)
                text["within_control" if one.kind in CONTROL_KINDS else "within_true"] += m * split
                text["between"] += m * math.log(m / model)
            assert scores.mass_DS[d, s] == pytest.approx(mass)
            assert scores.minority_mass_DS[d, s] == pytest.approx(minority)
            for key, value in found.items():
                assert scores.of_sets[key][1, d, s] == pytest.approx(value, rel=1e-9, abs=1e-12), (one.name, key)
        for key, value in text.items():
            assert scores.of_text[key][1, d] == pytest.approx(value, rel=1e-9), key
    kl, *others = (scores.of_text[key] for key in parts)
    np.testing.assert_allclose(kl, np.sum(others, axis=0), rtol=1e-12)


def test_what_is_said_of_sets_does_not_depend_on_the_words_drawn(grammar: Grammar, contexts: Contexts) -> None:
    """Weighted by the true joint mass, not by what came; what came agrees with it at 4 standard errors."""
    predict = noisy(grammar)
    scores = evaluate(predict, grammar, contexts, [1.0])
    likeliest_DT = grammar.next_distribution(contexts.x_DT).argmax(axis=2)
    again = evaluate(predict, grammar, replace(contexts, y_DT=likeliest_DT), [1.0])
    for metric in SET_METRICS:
        np.testing.assert_array_equal(scores.of_sets[metric.key], again.of_sets[metric.key])
    assert of_text(scores, "kl") == of_text(again, "kl")
    assert of_text(scores, "nll") > of_text(again, "nll")
    words = [token for one in grammar.sets for token in one.tokens]
    came = sum(np.isin(y_T[:n], words).sum() for y_T, n in zip(contexts.y_DT, contexts.length_D, strict=True))
    assert abs(came - scores.mass_DS.sum()) < 4 * math.sqrt(scores.mass_DS.sum())


def test_all_single_contexts_are_kept_in_which_a_set_is_probable(grammar: Grammar, contexts: Contexts) -> None:
    scores = evaluate(noisy(grammar), grammar, contexts, [1.0, 2.0])
    kept = scores.kept
    p_DTV = grammar.next_distribution(contexts.x_DT)
    valid_DT = np.arange(contexts.x_DT.shape[1]) < contexts.length_D[:, None]
    for s, one in enumerate(grammar.sets):
        m_DT = p_DTV[:, :, list(one.tokens)].sum(axis=2)
        assert (kept.set_R == s).sum() == (m_DT[valid_DT] >= KEPT_MASS).sum()
    for r in range(0, len(kept.set_R), 97):
        row = int(np.flatnonzero(contexts.document_D == kept.document_R[r])[0])
        x = contexts.x_DT[row : row + 1, : kept.position_R[r] + 1]
        words = list(grammar.sets[kept.set_R[r]].tokens)
        p, q = grammar.next_distribution(x)[0, -1, words], np.exp(noisy(grammar)(x)[0, -1, words])
        assert kept.mass_R[r] == pytest.approx(p.sum())
        assert kept.share_R[r] == pytest.approx(p[0] / p.sum())
        assert kept.model_mass_XR[0, r] == pytest.approx(q.sum())
        assert kept.model_share_XR[0, r] == pytest.approx(q[0] / q.sum())
        # what a temperature does to a share needs no other words
        assert kept.model_share_XR[1, r] == pytest.approx(q[0] ** 0.5 / (q**0.5).sum())


# ------------------------------------------------------------------------------------------------------------ contexts


def test_contexts_are_documents_from_their_first_token_after_an_end_of_text(grammar: Grammar) -> None:
    documents = sample(grammar)
    found = drawn(grammar, 2, 8, 80)
    assert found.document_D.tolist() == [2, 3, 4, 5, 6, 7]
    assert set(np.sign(found.length_D - 80)) == {-1, 0}  # some are cut, some are not
    for d, document in enumerate(documents[2:8]):
        length = min(len(document), 80)
        assert found.length_D[d] == length
        assert found.y_DT[d, :length].tolist() == document[:length].tolist()
        assert found.x_DT[d, :length].tolist() == [0, *document[: length - 1].tolist()]
    grammar.next_distribution(found.x_DT)  # the padding is text of the grammar too: no error


def test_a_document_scores_the_same_alone_and_among_others(grammar: Grammar, contexts: Contexts) -> None:
    """Neither padding nor batches count."""
    predict = cheats(grammar)["frequency"]
    together = evaluate(predict, grammar, contexts, [1.0])
    for d in (0, 7, 19):
        alone = evaluate(predict, grammar, drawn(grammar, d, d + 1), [1.0])
        np.testing.assert_allclose(together.mass_DS[d], alone.mass_DS[0], rtol=1e-12)
        for key, value in alone.of_sets.items():
            np.testing.assert_allclose(together.of_sets[key][0, d], value[0, 0], rtol=1e-9, atol=1e-12)
        for key, value in alone.of_text.items():
            assert together.of_text[key][0, d] == pytest.approx(value[0, 0])


def test_a_temperature_of_one_changes_nothing_and_two_are_one_after_the_other() -> None:
    log_q = np.log(np.random.default_rng(0).dirichlet(np.ones(9), 5))
    assert tempered(log_q, 1) is log_q
    np.testing.assert_allclose(tempered(tempered(log_q, 2), 0.25), tempered(log_q, 0.5), rtol=1e-12)
    np.testing.assert_allclose(np.exp(tempered(log_q, 3)).sum(axis=1), 1, rtol=1e-12)

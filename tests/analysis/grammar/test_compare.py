"""Means and paired differences of arms are weighted by the truth, paired by seed, and kept apart by kind."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest

from analysis.compare.arms import Arm, Member
from analysis.compare.statistics import crossed_bootstrap
from analysis.compare.temperature import VIEWS
from analysis.grammar.compare import SCOPES, arm_table, effects_of_sets, effects_of_text, scope_mean, set_means
from analysis.grammar.truth import SET_METRICS, TEXT_METRICS, TRUE_KINDS, Kept, Scores
from data.grammar import SynonymSet

LEMMAS = 5  # of each kind: of fewer, tied as here, scipy enumerates all signs, which takes seconds
SETS = [
    SynonymSet(f"{kind}{number}:{form}", f"{kind}{number}", kind, (0, 1))
    for kind in ("equal", "unequal", "rare", "contextual", "near", "antonym")
    for number in range(LEMMAS)
    for form in ("a", "b")
]
DOCUMENTS = 8
MASS = np.random.default_rng(0).exponential(1, (DOCUMENTS, len(SETS)))
MASS[:, 4] = 0  # the first form of a lemma that never comes
POSITIONS = np.arange(10.0, 10.0 + DOCUMENTS)


def arm(label: str, *seeds: int) -> Arm:
    return Arm(label, tuple(Member(f"{label}{seed}", Path(label), None, seed) for seed in seeds))


def scores(seed: int, shift: float = 0.0) -> Scores:
    """Random scores of which each metric is ``shift`` higher in every cell, and twice that in the matched view."""
    rng = np.random.default_rng(seed)
    by_view = shift * np.array([1, 1, 2])
    kept = Kept(*([np.zeros(0)] * 5), *([np.zeros((3, 0))] * 3))  # type: ignore[arg-type]
    return Scores(
        document_D=np.arange(DOCUMENTS),
        position_D=POSITIONS,
        mass_DS=MASS,
        minority_mass_DS=MASS * [one.kind != "equal" for one in SETS],
        of_sets={
            m.key: (rng.normal(size=(3, DOCUMENTS, len(SETS))) + by_view[:, None, None])
            * MASS
            * ([one.kind != "equal" or m.key != "minority" for one in SETS])
            for m in SET_METRICS
        },
        of_text={m.key: (rng.normal(size=(3, DOCUMENTS)) + by_view[:, None]) * POSITIONS for m in TEXT_METRICS},
        truth={},
        kept=kept,
    )


def shifted(one: Scores, shift: float) -> Scores:
    return replace(
        one,
        of_sets={key: value + shift * one.weight_DS(key) for key, value in one.of_sets.items()},
        of_text={key: value + shift * POSITIONS for key, value in one.of_text.items()},
    )


def first_documents(one: Scores, count: int) -> Scores:
    return replace(
        one,
        document_D=one.document_D[:count],
        position_D=one.position_D[:count],
        mass_DS=one.mass_DS[:count],
        minority_mass_DS=one.minority_mass_DS[:count],
        of_sets={key: value[:, :count] for key, value in one.of_sets.items()},
        of_text={key: value[:, :count] for key, value in one.of_text.items()},
    )


def only_sets(one: Scores, chosen: list[int]) -> Scores:
    return replace(
        one,
        mass_DS=one.mass_DS[:, chosen],
        minority_mass_DS=one.minority_mass_DS[:, chosen],
        of_sets={key: value[..., chosen] for key, value in one.of_sets.items()},
    )


def test_the_means_are_weighted_by_the_true_mass_and_those_of_kinds_are_apart() -> None:
    found = {"a0": scores(1, 0.5), "a1": scores(2)}
    table = arm_table(arm("a", 0, 1), found, SETS, seed=0)
    for x, view in enumerate(VIEWS):
        for metric in TEXT_METRICS:
            values = [found[label].of_text[metric.key][x].sum() / POSITIONS.sum() for label in ("a0", "a1")]
            assert table.text[view][metric.key].mean == pytest.approx(np.mean(values))
            assert table.text[view][metric.key].clusters == {"document": DOCUMENTS, "seed": 2}
        for scope, kinds in SCOPES.items():
            chosen = [one.kind in kinds for one in SETS]
            for metric in SET_METRICS:
                effect = table.sets[view][scope][metric.key]
                weight = sum(one.weight_DS(metric.key)[:, chosen].sum() for one in found.values())
                if weight == 0:
                    assert (scope, metric.key, effect.n) == ("equal", "minority", 0)
                    continue
                value = sum(one.of_sets[metric.key][x][:, chosen].sum() for one in found.values())
                assert effect.mean == pytest.approx(value / weight)
                lemmas = LEMMAS * len([kind for kind in kinds if metric.key != "minority" or kind != "equal"])
                assert effect.clusters == {"lemma": lemmas, "document": DOCUMENTS, "seed": 2}
                assert effect.n == lemmas * DOCUMENTS * 2


def test_differences_are_paired_by_seed_document_and_lemma() -> None:
    """What the two arms share cancels: only the shift is left, in a narrow interval."""
    found = {"a0": scores(1), "a1": scores(2), "a2": scores(3)}
    found |= {"b2": shifted(found["a2"], 0.25), "b0": shifted(found["a0"], 0.25)}
    arms = arm("b", 2, 0), arm("a", 0, 1, 2)
    effect = effects_of_text(arms[0], found, 0, arms[1])["fitted"]["kl"]
    assert (effect.mean, effect.low, effect.high) == pytest.approx((0.25, 0.25, 0.25))
    for effect, p in effects_of_sets(arms[0], found, SETS, TRUE_KINDS, 0, arms[1])["matched"].values():
        assert (effect.mean, effect.low, effect.high) == pytest.approx((0.25, 0.25, 0.25))
        assert p < 0.01  # all lemmas on one side
    same = arm("a", 0, 1)
    effect, p = effects_of_sets(same, found, SETS, ["near"], 0, same)["raw"]["joint_kl"]
    assert (effect.mean, effect.smallest, p) == (0, 0, 1)


def test_a_seed_that_the_baseline_does_not_have_is_held_against_its_mean() -> None:
    found = {"a0": scores(1), "a1": scores(2), "b7": scores(3, 1.0)}
    effects = effects_of_sets(arm("b", 7), found, SETS, TRUE_KINDS, 0, arm("a", 0, 1))
    for x, view in enumerate(VIEWS):
        value = [scope_mean(found[label], SETS, "split_kl", x, TRUE_KINDS) for label in ("b7", "a0", "a1")]
        effect, _ = effects[view]["split_kl"]
        assert effect.mean == pytest.approx(value[0] - (value[1] + value[2]) / 2)
        assert effect.low is not None and effect.high is not None
        assert effect.low < effect.mean < effect.high


def test_the_interval_covers_no_difference_and_not_a_large_one() -> None:
    found = {
        "a0": scores(1),
        "a1": scores(2),
        "b0": scores(3),
        "b1": scores(4),
        "c0": scores(5, 2.0),
        "c1": scores(6, 2.0),
    }
    effects = {
        label: effects_of_sets(arm(label, 0, 1), found, SETS, TRUE_KINDS, 0, arm("a", 0, 1))["raw"]["split_kl"]
        for label in "bc"
    }
    (none, no_p), (large, p) = effects["b"], effects["c"]
    assert none.low is not None and none.high is not None and large.low is not None and large.smallest is not None
    assert none.low < 0 < none.high
    assert 0 < large.low < 2
    assert p < 0.01 < no_p
    assert 0 < large.smallest < 2


def test_there_is_no_interval_of_fewer_than_five_documents_or_lemmas() -> None:
    found = {"a0": scores(1), "b0": scores(2)}
    few = {label: first_documents(one, 4) for label, one in found.items()}
    for some, documents in ((found, DOCUMENTS), (few, 4)):
        text = effects_of_text(arm("b", 0), some, 0, arm("a", 0))["raw"]["kl"]
        assert text.clusters["document"] == documents and (text.low is None) == (documents < 5)
        for lemmas in (LEMMAS, 4):
            sets = [one for one in SETS if int(one.lemma[-1]) < lemmas]
            chosen = [index for index, one in enumerate(SETS) if one in sets]
            own = {label: only_sets(one, chosen) for label, one in some.items()}
            effect, p = effects_of_sets(arm("b", 0), own, sets, ["rare"], 0, arm("a", 0))["raw"]["split_kl"]
            assert effect.clusters["lemma"] == lemmas and (effect.low is None) == (min(documents, lemmas) < 5)
            assert 0 < p <= 1


def test_effects_that_are_found_together_are_those_of_each_by_itself() -> None:
    found = {"a0": scores(1), "a1": scores(2), "b0": scores(3), "b1": scores(4)}
    arms = arm("b", 0, 1), arm("a", 0, 1)
    text = effects_of_text(arms[0], found, 4, arms[1])
    sets = effects_of_sets(arms[0], found, SETS, ["rare"], 4, arms[1])
    members = np.repeat([0, 1], DOCUMENTS)
    alone = crossed_bootstrap(
        np.concatenate(
            [(found[f"b{s}"].of_text["nll"][2] - found[f"a{s}"].of_text["nll"][2]) / POSITIONS for s in (0, 1)]
        ),
        {"document": np.tile(np.arange(DOCUMENTS), 2), "seed": members},
        weight_Q=np.tile(POSITIONS, 2),
        seed=4,
    )
    assert astuple(text["matched"]["nll"])[:5] == pytest.approx(astuple(alone)[:5], rel=1e-9)
    rare = [s for s, one in enumerate(SETS) if one.kind == "rare"]
    difference = [found[f"b{s}"].of_sets["fracture"][1] - found[f"a{s}"].of_sets["fracture"][1] for s in (0, 1)]
    weight = MASS[:, rare].reshape(DOCUMENTS, LEMMAS, 2).sum(axis=2)
    value = [cells[:, rare].reshape(DOCUMENTS, LEMMAS, 2).sum(axis=2) / weight for cells in difference]
    alone = crossed_bootstrap(
        np.concatenate(value).ravel(),
        {
            "lemma": np.tile(np.arange(LEMMAS), 2 * DOCUMENTS),
            "document": np.tile(np.repeat(np.arange(DOCUMENTS), LEMMAS), 2),
            "seed": np.repeat([0, 1], DOCUMENTS * LEMMAS),
        },
        weight_Q=np.tile(weight.ravel(), 2),
        seed=4,
    )
    assert astuple(sets["fitted"]["fracture"][0])[:5] == pytest.approx(astuple(alone)[:5], rel=1e-9)


def test_a_table_of_differences_holds_the_effects_of_the_pairs() -> None:
    found = {"a0": scores(1), "b0": scores(2)}
    arms = arm("b", 0), arm("a", 0)
    table = arm_table(arms[0], found, SETS, seed=3, baseline=arms[1])
    effect, p = effects_of_sets(arms[0], found, SETS, ["rare"], 3, arms[1])["matched"]["minority"]
    assert (table.sets["matched"]["rare"]["minority"], table.wilcoxon["matched"]["rare"]["minority"]) == (effect, p)


def test_means_of_sets_are_over_all_members_and_nan_where_a_set_never_comes() -> None:
    found = [scores(1), scores(2)]
    mean = set_means(found, "fracture", 2)
    assert np.isnan(mean[4])
    for s in (0, 9, 50):
        values = [one.of_sets["fracture"][2, :, s].sum() / MASS[:, s].sum() for one in found]
        assert mean[s] == pytest.approx(np.mean(values))
    assert np.isnan(set_means(found, "minority", 0)[: 2 * LEMMAS]).all()  # of equal words none is the least probable

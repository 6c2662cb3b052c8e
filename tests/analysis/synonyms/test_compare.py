from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import wilcoxon

from analysis.compare.arms import Arm
from analysis.compare.statistics import holm
from analysis.compare.temperature import VIEWS
from analysis.synonyms.compare import TESTED, Comparison, compare, effects_of
from analysis.synonyms.metrics import KEYS, Values
from analysis.synonyms.study import Role, Study
from tests.analysis.made import arm, metrics_of, results_of, study_of, unit

Floats = npt.NDArray[np.float64]
NAN = math.nan
BASE = arm("base", 0, 1, 2)
OTHER = arm("other", 0, 1, 2)


def small_study(queries: int = 60, seed: int = 0) -> Study:
    """Three items of very different sizes and six units; the last sixth are places of other words."""
    units = [unit(min(i, 2), f"lemma{i}", Role.SYNONYM, Role.CONTROL, single=i != 2) for i in range(6)]
    rng = np.random.default_rng(seed)
    unit_M = rng.choice(6, queries, p=[0.6, 0.15, 0.1, 0.05, 0.05, 0.05])
    unit_M[: 2 * len(units)] = np.tile(np.arange(6), 2)
    unit_M[-6:] = np.arange(6)
    return study_of(units, unit_M.tolist(), shuffled=range(queries - queries // 6, queries))


def random_metrics(study: Study, arms: Sequence[Arm], seed: int = 0, missing: float = 0.0) -> dict[str, Values]:
    """Metrics of every member, a share of their values NaN, and all of the metric gap."""
    rng = np.random.default_rng(seed)
    shape = (len(VIEWS), len(study.unit_M))

    def fill(key: str) -> Floats:
        values = rng.normal(size=shape)
        return np.where((rng.random(shape) < missing) | (key == "gap"), NAN, values)

    return {member.label: metrics_of(shape[1], fill) for one in arms for member in one.members}


def run(study: Study, arms: Sequence[Arm], metrics: dict[str, Values]) -> Comparison:
    return compare(study, arms, results_of(metrics), seed=0)


def mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else NAN


def naive_items(study: Study, rows: Sequence[Sequence[float]], scope: str = "all") -> list[float]:
    """The mean of each item over all seeds and queries of the scope that have a value."""
    found: list[list[float]] = [[] for _ in study.items]
    for row in rows:
        for m, value in enumerate(row):
            one = study.units[study.unit_M[m]]
            if not study.shuffled_M[m] and (scope == "all" or one.single):
                found[one.item].append(value)
    return [mean(values) for values in found]


def naive_rows(metrics: dict[str, Values], base: Arm, other: Arm, key: str, view: int) -> list[list[float]]:
    """Differences of each member of ``other``, in Python's floats."""

    def value(label: str, m: int) -> float:
        return float(metrics[label][key][view, m])

    rows = []
    for member in other.members:
        partners = [b.label for b in base.members if b.seed == member.seed and b.seed is not None]
        labels = partners or [b.label for b in base.members]
        queries = range(metrics[member.label][key].shape[1])
        rows.append([value(member.label, m) - mean([value(label, m) for label in labels]) for m in queries])
    return rows


@pytest.mark.parametrize(
    ("base", "other"),
    [
        (BASE, OTHER),
        (BASE, arm("other", 2, 1)),  # in another order, and one fewer
        (BASE, arm("other", 1, 7)),  # a seed that the baseline has not
        (BASE, arm("other", None)),  # a guest
        (arm("base", None), arm("other", 0, 1)),
        (arm("base", None), arm("other", None)),
    ],
)
def test_differences_are_those_of_loops_paired_by_seed_and_items_weigh_the_same(base: Arm, other: Arm) -> None:
    study = small_study()
    metrics = random_metrics(study, [base, other], missing=0.1)
    found = run(study, [base, other], metrics)
    for x, view in enumerate(VIEWS):
        for key in KEYS:
            rows = naive_rows(metrics, base, other, key, x)
            for scope in ("all", "single"):
                if key not in found.differences["other"][scope][view]:
                    continue
                got = found.differences["other"][scope][view][key]
                assert got.mean == pytest.approx(mean(naive_items(study, rows, scope)), abs=1e-12, nan_ok=True)
                counted = [
                    (m, s) for s, row in enumerate(rows) for m, value in enumerate(row)
                    if not math.isnan(value) and not study.shuffled_M[m]
                    and (scope == "all" or study.units[study.unit_M[m]].single)
                ]  # fmt: skip
                assert got.n == len(counted)
                assert got.clusters["seed"] == len({s for _, s in counted})
                assert got.clusters["lemma"] == len({study.units[study.unit_M[m]].lemma for m, _ in counted})
                assert got.clusters["document"] == len({int(study.document_C[m]) for m, _ in counted})
            items = naive_items(study, rows)
            assert found.signed_ranks["other"][view][key]["items"] == sum(not math.isnan(value) for value in items)
            p = found.signed_ranks["other"][view][key]["p"]
            if key == "gap":
                assert math.isnan(p)  # no value, which shows nothing
            else:
                digits = 6 if key.startswith(("auc", "log10")) else 15
                assert p == pytest.approx(wilcoxon(np.round(items, digits)).pvalue)
    assert set(found.differences["other"]["single"]["raw"]) < set(found.differences["other"]["all"]["raw"])


def test_means_are_those_of_loops_over_items() -> None:
    study = small_study()
    metrics = random_metrics(study, [BASE, OTHER], missing=0.1)
    found = run(study, [BASE, OTHER], metrics)
    for one in (BASE, OTHER):
        for x, view in enumerate(VIEWS):
            for key in KEYS:
                items = naive_items(study, [metrics[m.label][key][x].tolist() for m in one.members])
                assert found.means[one.label][view][key]["mean"] == pytest.approx(mean(items), abs=1e-12, nan_ok=True)
                assert found.means[one.label][view][key]["items"] == sum(not math.isnan(value) for value in items)


def test_what_the_models_of_a_seed_share_cancels() -> None:
    study = small_study()
    rng = np.random.default_rng(3)
    metrics: dict[str, Values] = {}
    for seed in range(3):
        shared_M = 100 * rng.normal(size=len(study.unit_M))
        for label, shift in (("base", 0), ("other", 1)):
            metrics[f"{label}{seed}"] = {key: np.tile(shared_M + shift, (3, 1)).astype(np.float32) for key in KEYS}
    found = run(study, [BASE, OTHER], metrics).differences["other"]["all"]["raw"]["log_odds"]
    assert found.low is not None and found.high is not None
    assert 1 - 1e-4 < found.low <= found.mean <= found.high < 1 + 1e-4


def test_identical_arms_differ_by_exactly_nothing() -> None:
    study = small_study()
    metrics = random_metrics(study, [BASE], missing=0.1)
    twin = arm("twin", 0, 1, 2)
    metrics |= {t.label: metrics[b.label] for t, b in zip(twin.members, BASE.members, strict=True)}
    found = run(study, [BASE, twin], metrics)
    for scope in ("all", "single"):
        for row in found.differences["twin"][scope].values():
            for key, got in row.items():
                if key != "gap":
                    assert (got.mean, got.low, got.high, got.standard_error) == (0, 0, 0, 0)
    for ranks in found.signed_ranks["twin"].values():
        assert {key: one["p"] for key, one in ranks.items() if key != "gap"} == dict.fromkeys(set(KEYS) - {"gap"}, 1.0)
    test = found.item_tests["twin"]
    np.testing.assert_array_equal(test.mean_P, 0)
    np.testing.assert_array_equal(test.holm_P, 1)


def test_places_of_other_words_never_enter_but_the_gain_of_context() -> None:
    study = small_study()
    metrics = random_metrics(study, [BASE, OTHER])
    changed = {
        label: {key: np.where(study.shuffled_M, value + 50, value).astype(np.float32) for key, value in one.items()}
        for label, one in metrics.items()
    }
    before, after = run(study, [BASE, OTHER], metrics), run(study, [BASE, OTHER], changed)
    np.testing.assert_equal(before.means, after.means)
    np.testing.assert_equal(before.differences, after.differences)
    np.testing.assert_equal(before.signed_ranks, after.signed_ranks)
    np.testing.assert_array_equal(before.item_tests["other"].p_P, after.item_tests["other"].p_P)
    for label in ("base", "other"):
        assert after.gains[label].mean == pytest.approx(before.gains[label].mean - 50, abs=1e-4)


def test_the_gain_of_context_is_that_of_each_unit_over_its_own_mean_elsewhere() -> None:
    study = small_study()
    metrics = random_metrics(study, [OTHER])
    rows = []
    for member in OTHER.members:
        value_M = metrics[member.label]["log_odds"][0].tolist()
        pairs = list(zip(study.unit_M.tolist(), study.shuffled_M.tolist(), value_M, strict=True))
        rows.append([value - mean([v for u, away, v in pairs if away and u == one]) for one, _, value in pairs])
    assert run(study, [OTHER], metrics).gains["other"].mean == pytest.approx(mean(naive_items(study, rows)), abs=1e-12)


def test_words_that_are_liked_everywhere_gain_nothing_of_context_however_many_queries_they_have() -> None:
    study = small_study()  # a unit's share of an item is not its share of the places of other words
    anywhere_U = np.array([3.0, -2.0, 5.0, -4.0, 1.0, 2.0])
    metrics = {m.label: metrics_of(len(study.unit_M), lambda key: anywhere_U[study.unit_M]) for m in OTHER.members}
    got = run(study, [OTHER], metrics).gains["other"]
    assert (got.mean, got.low, got.high) == (0, 0, 0)


def test_each_item_is_tested_over_its_contexts_and_holm_counts_the_items_that_could_be() -> None:
    study = small_study(400)
    metrics = random_metrics(study, [BASE, OTHER])
    for member in OTHER.members:
        tested = metrics[member.label][TESTED]
        tested[:, (study.item_M == 0)] += 2
        tested[:, (study.item_M == 1)] = NAN
    got = run(study, [BASE, OTHER], metrics).item_tests["other"]
    rows = naive_rows(metrics, BASE, OTHER, TESTED, VIEWS.index("matched"))
    expected = []
    for item in (0, 2):
        own = [m for m in range(400) if not study.shuffled_M[m] and study.units[study.unit_M[m]].item == item]
        per_context = [mean([row[m] for row in rows]) for m in own]
        assert got.mean_P[item] == pytest.approx(mean(per_context))
        expected.append(wilcoxon(per_context).pvalue)
    np.testing.assert_allclose(got.p_P, [expected[0], NAN, expected[1]])
    np.testing.assert_allclose(got.holm_P, holm([expected[0], NAN, expected[1]]))
    low, high = sorted(expected)
    assert sorted(got.holm_P[[0, 2]]) == pytest.approx([2 * low, max(2 * low, high)])  # two tests, not three
    assert got.holm_P[0] < 0.05


def test_a_view_that_one_seed_has_not_is_that_of_the_others() -> None:
    study = small_study()
    metrics = random_metrics(study, [BASE, OTHER])
    full = run(study, [arm("base", 0, 1), arm("other", 0, 1)], metrics)
    for value in metrics["other2"].values():
        value[VIEWS.index("matched")] = NAN
    found = run(study, [BASE, OTHER], metrics)
    for key in set(KEYS) - {"gap"}:
        got, expected = (one.differences["other"]["all"]["matched"][key] for one in (found, full))
        assert got.mean == pytest.approx(expected.mean, abs=1e-12)
        assert (got.n, got.clusters) == (expected.n, expected.clusters)
        means = (one.means["other"]["matched"][key]["mean"] for one in (found, full))
        assert next(means) == pytest.approx(next(means), abs=1e-12)
    np.testing.assert_allclose(found.item_tests["other"].p_P, full.item_tests["other"].p_P)


def test_equal_differences_of_shares_tie_although_float32_tells_them_apart() -> None:
    study = study_of([unit(i, f"lemma{i}", Role.SYNONYM, Role.CONTROL) for i in range(4)], [0, 1, 2, 3])
    pairs = [(0.8, 0.6), (0.4, 0.2), (0.1, 0.3), (0.7, 0.9)]  # +0.2 twice, -0.2 twice
    values = np.array(pairs, dtype=np.float32)
    assert len(set(np.abs(values[:, 0].astype(float) - values[:, 1]))) > 1
    metrics = {
        "otherNone": metrics_of(4, lambda key: values[:, 0].astype(float)),
        "baseNone": metrics_of(4, lambda key: values[:, 1].astype(float)),
    }
    found = run(study, [arm("base", None), arm("other", None)], metrics)
    assert found.signed_ranks["other"]["raw"]["auc"]["p"] == 1.0


def test_a_small_difference_of_large_values_is_right_although_float32_is_stored() -> None:
    study = study_of([unit(0, "lemma", Role.SYNONYM, Role.CONTROL)], [0] * 50)
    rng = np.random.default_rng(4)
    base_M = rng.uniform(5, 12, 50)
    shift_M = rng.normal(1e-3, 1e-4, 50)
    metrics = {
        "baseNone": metrics_of(50, lambda key: base_M),
        "otherNone": metrics_of(50, lambda key: base_M + shift_M),
    }
    got = run(study, [arm("base", None), arm("other", None)], metrics).differences["other"]["all"]["raw"]["log_odds"]
    assert got.mean == pytest.approx(shift_M.mean(), abs=1e-6)


@pytest.mark.parametrize(("lemmas", "documents"), [(2, 6), (4, 6), (6, 2), (6, 4), (5, 5)])
def test_there_is_no_interval_of_fewer_than_five_lemmas_or_documents(lemmas: int, documents: int) -> None:
    units = [unit(i // 2, f"lemma{i}", Role.SYNONYM, Role.CONTROL) for i in range(lemmas)]
    study = study_of(units, np.repeat(np.arange(lemmas), documents).tolist(), documents=documents)
    found = run(study, [BASE, OTHER], random_metrics(study, [BASE, OTHER]))
    got = found.differences["other"]["all"]["raw"]["log_odds"]
    assert math.isfinite(got.mean) and got.clusters == {"lemma": lemmas, "document": documents, "seed": 3}
    ends = (got.low, got.high, got.standard_error, got.smallest)
    assert all((end is not None) == (min(lemmas, documents) >= 5) for end in ends)


def test_metrics_evaluated_together_are_those_evaluated_alone() -> None:
    study = small_study(200)
    rng = np.random.default_rng(5)
    value_KSM = rng.normal(size=(4, 3, 200))
    value_KSM[1, :, ::3] = NAN
    value_KSM[2] = NAN
    together = effects_of(study, value_KSM, study.own_M, 0)
    for got, value_SM in zip(together, value_KSM, strict=True):
        (alone,) = effects_of(study, cast(Floats, value_SM)[None], study.own_M, 0)
        assert (got.n, got.clusters) == (alone.n, alone.clusters)
        for name in ("mean", "low", "high", "standard_error", "smallest"):
            one, other = getattr(got, name), getattr(alone, name)
            assert (one is None) == (other is None)
            assert one is None or one == pytest.approx(other, abs=1e-12, nan_ok=True)

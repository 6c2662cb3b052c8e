from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from scipy.integrate import quad
from scipy.stats import chi2, norm, t, ttest_1samp

from analysis.compare.statistics import (
    Effect,
    crossed_bootstrap,
    crossed_bootstraps,
    generalised_average_precision,
    holm,
    mean_over_seeds,
    signed_rank,
)

Floats = npt.NDArray[np.float64]
NAN = math.nan


def unbalanced(seed: int, levels: tuple[int, ...] = (7, 9, 3), n: int = 60) -> tuple[Floats, Floats, list[list[str]]]:
    """Values with effects of three factors, weights from 0 up, and the level of each factor; few cells occur."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(k, size=n) for k in levels]
    values = 1 + sum((rng.standard_normal(k)[i] for k, i in zip(levels, ids, strict=True)), rng.standard_normal(n))
    return values, rng.integers(4, size=n) / 2, [[f"level {i}" for i in label] for label in ids]


def naive_resamples(
    values: Floats, weights: Floats, labels: list[list[str]], resamples: int, rng: np.random.Generator
) -> Floats:
    """Resampled means by the definition: one fewer level than there are is drawn, and the rows are written out."""
    means = []
    for _ in range(resamples):
        rows = [i for i in range(len(values)) if weights[i] > 0]
        for label in labels:
            levels = sorted({label[i] for i in range(len(values)) if weights[i] > 0})
            drawn = [levels[rng.integers(len(levels))] for _ in range(len(levels) - 1)]
            rows = [i for level in drawn for i in rows if label[i] == level]
        if rows:
            means.append(sum(weights[i] * values[i] for i in rows) / sum(weights[i] for i in rows))
    return np.array(means)


def naive_critical(values: Floats, weights: Floats, labels: list[list[str]]) -> float:
    """t(.975) with Satterthwaite's degrees of freedom, by loops over the levels of each factor."""
    mean = sum(weights * values) / sum(weights)
    total, squares = 0.0, 0.0
    for label in labels:
        levels = {label[i] for i in range(len(values)) if weights[i] > 0}
        pulls = [
            sum(weights[i] * (values[i] - mean) for i in range(len(values)) if label[i] == level) / sum(weights)
            for level in levels
        ]
        variance = len(levels) / (len(levels) - 1) * sum(pull**2 for pull in pulls)
        total += variance
        squares += variance**2 / (len(levels) - 1)
    return float(t.ppf(0.975, total**2 / squares))


def named(labels: list[list[str]]) -> dict[str, list[str]]:
    return {f"factor {f}": label for f, label in enumerate(labels)}


def bounds(effect: Effect) -> tuple[float, float, float]:
    """The interval and the standard error of an effect that has them."""
    assert effect.low is not None and effect.high is not None and effect.standard_error is not None
    return effect.low, effect.high, effect.standard_error


@pytest.mark.parametrize("factors", [1, 2, 3])
def test_the_distribution_is_that_of_rows_written_out(factors: int) -> None:
    values, weights, labels = unbalanced(factors)
    labels = labels[:factors]
    effect = crossed_bootstrap(values, named(labels), weight_Q=weights, seed=3, resamples=40_000)
    means = naive_resamples(values, weights, labels, 3000, np.random.default_rng(4))
    low, high, error = bounds(effect)
    assert effect.mean == pytest.approx(np.average(values, weights=weights))
    # a standard deviation of 3000 draws is known to 1 / sqrt(6000) = 1.3%, more with heavy tails
    assert error == pytest.approx(means.std(), rel=0.05)
    half = naive_critical(values, weights, labels) * error
    assert (low, high) == pytest.approx((effect.mean - half, effect.mean + half))


def test_error_and_interval_are_those_of_all_possible_draws() -> None:
    # two rows draw one of two, three columns two of three: 2 * 9 equally likely resamples, some of them without weight
    values, rows, columns = np.array([1.0, 4.0, -2.0, 8.0]), [0, 0, 1, 1], [0, 1, 1, 2]
    means = []
    for row, *pair in itertools.product(range(2), range(3), range(3)):
        counts = [(r == row) * pair.count(c) for r, c in zip(rows, columns, strict=True)]
        if sum(counts):
            means.append(np.average(values, weights=counts))
    assert len(means) < 18
    effect = crossed_bootstrap(values, {"row": rows, "column": columns}, seed=0, resamples=200_000)
    low, high, error = bounds(effect)
    assert error == pytest.approx(np.std(means), rel=0.01)
    half = naive_critical(values, np.ones(4), [[str(r) for r in rows], [str(c) for c in columns]]) * np.std(means)
    assert (low, high) == pytest.approx((2.75 - half, 2.75 + half), rel=0.01)
    assert (effect.mean, effect.n, effect.clusters) == (2.75, 4, {"row": 2, "column": 3})


def test_one_balanced_factor_has_the_standard_error_of_a_mean_of_cluster_means() -> None:
    rng = np.random.default_rng(5)
    for clusters in (2, 3, 12, 40):
        values = rng.standard_normal((clusters, 1)) + rng.standard_normal((clusters, 6))
        effect = crossed_bootstrap(
            values.ravel(), {"lemma": np.repeat(np.arange(clusters), 6)}, seed=1, resamples=40_000
        )
        expected = values.mean(axis=1).std(ddof=1) / math.sqrt(clusters)
        assert bounds(effect)[2] == pytest.approx(expected, rel=0.02), clusters


def test_factors_with_equally_many_levels_are_drawn_independently() -> None:
    effects = np.random.default_rng(18).standard_normal(8)
    row, column = (grid.ravel() for grid in np.meshgrid(range(8), range(8)))
    effect = crossed_bootstrap(effects[row] - effects[column], {"row": row, "column": column}, seed=0, resamples=40_000)
    expected = math.sqrt(2 * effects.var(ddof=1) / 8)  # nothing if both drew the same levels
    assert bounds(effect)[2] == pytest.approx(expected, rel=0.02)


def test_many_clusters_have_the_interval_of_students_t() -> None:
    values = np.random.default_rng(6).standard_normal(400)
    effect = crossed_bootstrap(values, {"lemma": np.arange(400)}, seed=2, resamples=40_000)
    half = t.ppf(0.975, 399) * values.std(ddof=1) / 20
    assert np.allclose(bounds(effect)[:2], [values.mean() - half, values.mean() + half], atol=0.05 * half)


@pytest.mark.parametrize("values", [[1.0, 2.0], [0.5, 4.0, 1.5], [0.1, 0.4, -0.2, 0.3, 0.9]])
def test_seeds_alone_have_the_interval_of_students_t(values: list[float]) -> None:
    effect = crossed_bootstrap(values, {"seed": list(range(len(values)))}, seed=0, resamples=100_000)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert bounds(effect)[:2] == pytest.approx((expected.low, expected.high), rel=0.01, abs=0.01)


@pytest.mark.parametrize("seed_effect", [0.3, 1.0])
def test_intervals_cover_the_truth_about_95_times_in_100(seed_effect: float) -> None:
    rng = np.random.default_rng(7)
    lemma, document, seed = (grid.ravel() for grid in np.meshgrid(range(20), range(30), range(3)))
    factors = {"lemma": lemma, "document": document, "seed": seed}
    covered, errors, means, trials = 0, [], [], 250
    for trial in range(trials):
        effects = rng.standard_normal(20)[lemma] + rng.standard_normal(30)[document]
        values = effects + seed_effect * rng.standard_normal(3)[seed] + rng.standard_normal(len(seed))
        effect = crossed_bootstrap(values, factors, seed=trial, resamples=400)
        low, high, error = bounds(effect)
        covered += low <= 0 <= high
        errors.append(error)
        means.append(effect.mean)
    # 92% and 96% in 1500 trials; three standard deviations of 250 trials are 4 to 5 points
    assert 0.88 < covered / trials < 0.99
    # the estimated variance is unbiased but for the noise of single observations; a variance of 250 is known to 9%
    assert np.mean(np.square(errors)) == pytest.approx(np.var(means), rel=0.3)


def test_scaling_and_shifting_carry_over() -> None:
    values, weights, labels = unbalanced(8)
    effect = crossed_bootstrap(values, named(labels), weight_Q=weights, seed=1)
    moved = crossed_bootstrap(1000 - 2 * values, named(labels), weight_Q=10 * weights, seed=1)
    low, high, error = bounds(effect)
    expected = (1000 - 2 * effect.mean, 1000 - 2 * high, 1000 - 2 * low, 2 * error)
    assert (moved.mean, *bounds(moved)) == pytest.approx(expected, rel=1e-9)


def test_the_order_of_the_rows_and_the_names_of_the_levels_do_not_matter() -> None:
    values, weights, labels = unbalanced(9)
    effect = crossed_bootstrap(values, named(labels), weight_Q=weights, seed=1)
    order = np.random.default_rng(0).permutation(len(values))
    numbers = [np.array([10 * int(label.split()[1]) for label in column])[order] for column in labels]
    other = crossed_bootstrap(
        values[order], dict(zip(named(labels), numbers, strict=True)), weight_Q=weights[order], seed=1
    )
    assert (other.mean, *bounds(other)) == pytest.approx((effect.mean, *bounds(effect)), rel=1e-9)
    assert other.clusters == effect.clusters
    backwards = [-number for number in numbers]  # the levels are sorted otherwise and draw other numbers
    third = crossed_bootstrap(values[order], named([list(b) for b in backwards]), weight_Q=weights[order], seed=1)
    assert third.mean == pytest.approx(effect.mean)
    assert bounds(third) == pytest.approx(bounds(effect), rel=0.2)


def test_equal_seeds_agree_exactly_and_other_seeds_nearly() -> None:
    values, weights, labels = unbalanced(10)
    first, again, other = (crossed_bootstrap(values, named(labels), weight_Q=weights, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first != other
    assert bounds(first)[2] == pytest.approx(bounds(other)[2], rel=0.15)


def test_batches_of_resamples_do_not_change_the_distribution() -> None:
    # some 26,000 contexts allow about 80 resamples in a batch
    rng = np.random.default_rng(11)
    lemma, context = np.arange(60_000) % 200, rng.integers(30_000, size=60_000)
    values = rng.standard_normal(200)[lemma] + rng.standard_normal(60_000)
    effect = crossed_bootstrap(values, {"lemma": lemma, "context": context}, seed=0, resamples=300)
    by_lemma = np.array([values[lemma == level].mean() for level in range(200)])
    assert bounds(effect)[2] == pytest.approx(by_lemma.std(ddof=1) / math.sqrt(200), rel=0.15)


def test_values_that_are_not_finite_and_rows_without_weight_are_left_out() -> None:
    values, weights, labels = unbalanced(12)
    effect = crossed_bootstrap(values, named(labels), weight_Q=weights, seed=1)
    padded = np.concatenate([values, [NAN, np.inf, -np.inf, 1e9]])
    more = [column + ["unseen"] * 4 for column in labels]
    with_gaps = crossed_bootstrap(padded, named(more), weight_Q=np.concatenate([weights, [1, 1, 1, 0]]), seed=1)
    assert with_gaps == effect
    assert effect.n == np.count_nonzero(weights)


@pytest.mark.parametrize("clusters", [2, 3, 4, 6, 9, 30, 300])
def test_the_smallest_effect_is_where_students_t_has_80_percent_power(clusters: int) -> None:
    effect = crossed_bootstrap(*_lemmas(clusters, 13), seed=0)
    assert effect.smallest is not None
    noncentrality, freedom = effect.smallest / bounds(effect)[2], clusters - 1
    critical = t.ppf(0.975, freedom)

    def found(chi_square: float) -> float:
        """The density of the estimated variance, times the probability that t passes either end given it."""
        end = critical * math.sqrt(chi_square / freedom)
        return float(chi2.pdf(chi_square, freedom) * (norm.sf(end - noncentrality) + norm.cdf(-end - noncentrality)))

    middle = freedom * (noncentrality / critical) ** 2
    power = sum(quad(found, *part)[0] for part in ((0, middle / 4), (middle / 4, 4 * middle), (4 * middle, math.inf)))
    assert power == pytest.approx(0.80, abs=1e-4)


@pytest.mark.parametrize(("lemmas", "seeds", "spread"), [(1, 2, 1), (1, 3, 1), (1, 5, 1), (1, 8, 1), (15, 3, 0)])
def test_the_smallest_effect_is_shown_in_four_of_five_experiments(lemmas: int, seeds: int, spread: float) -> None:
    # seeds alone, two of them included, and seeds that hardly differ beside lemmas that do
    experiments = 2000
    rng = np.random.default_rng(lemmas + seeds)
    lemma, seed = (grid.ravel() for grid in np.meshgrid(range(lemmas), range(seeds)))
    effects = rng.standard_normal((experiments, lemmas)) if lemmas > 1 else np.zeros((experiments, 1))
    values = effects[:, lemma] + spread * rng.standard_normal((experiments, seeds))[:, seed]
    values += 0.01 * rng.standard_normal(values.shape)
    found = crossed_bootstraps(values, {"lemma": lemma, "seed": seed}, weight_MQ=np.ones_like(values), seed=0)
    low, high, error, smallest = np.array([(*bounds(one), one.smallest) for one in found]).T
    true_error = math.sqrt((lemmas > 1) / lemmas + spread**2 / seeds)
    effect = np.median(smallest / error) * true_error  # the factor is the same in all experiments, or nearly
    shown = (low + effect > 0) | (high + effect < 0)
    # three standard deviations of a share of 2000 are 2.7 and 1.5 points; the resamples, which all share, add about one
    assert shown.mean() == pytest.approx(0.80, abs=0.035)
    assert ((low <= 0) & (high >= 0)).mean() == pytest.approx(0.95, abs=0.02)


def _lemmas(clusters: int, seed: int) -> tuple[Floats, dict[str, npt.NDArray[np.int64]]]:
    return np.random.default_rng(seed).standard_normal(clusters), {"lemma": np.arange(clusters)}


def test_a_factor_with_one_level_is_reported_and_changes_nothing() -> None:
    values, factors = _lemmas(20, 14)
    alone = crossed_bootstrap(values, factors, seed=0)
    beside = crossed_bootstrap(values, {"seed": [7] * 20, **factors}, seed=0)
    assert beside == replace(alone, clusters={"seed": 1, "lemma": 20})


def test_no_interval_without_two_levels_of_any_factor() -> None:
    effect = crossed_bootstrap([1.0, 2.0], {"lemma": ["a", "a"], "seed": [0, 0]}, seed=0)
    assert effect == Effect(1.5, None, None, None, None, 2, {"lemma": 1, "seed": 1})
    assert crossed_bootstrap([1.0, 2.0], {}, seed=0) == Effect(1.5, None, None, None, None, 2, {})


def test_nothing_counted_is_nan_without_an_interval() -> None:
    for values, weights in (([], []), ([NAN, 1.0], [1.0, 0.0])):
        effect = crossed_bootstrap(values, {"lemma": list(range(len(values)))}, weight_Q=weights, seed=0)
        assert math.isnan(effect.mean)
        assert effect.low is effect.high is effect.standard_error is effect.smallest is None
        assert (effect.n, effect.clusters) == (0, {"lemma": 0})


def test_equal_values_have_an_interval_of_no_width() -> None:
    effect = crossed_bootstrap([3.0] * 6, {"lemma": [0, 0, 1, 1, 2, 2], "seed": [0, 1] * 3}, seed=0)
    assert (effect.mean, effect.low, effect.high, effect.standard_error) == (3.0, 3.0, 3.0, 0.0)


def test_where_only_combinations_differ_the_factor_of_fewest_levels_gives_the_degrees_of_freedom() -> None:
    values = np.array([[1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, -1.0, 1.0]])  # every row and column has the mean 0
    row, column = (grid.ravel() for grid in np.indices(values.shape))
    effect = crossed_bootstrap(values.ravel(), {"row": row, "column": column}, seed=0)
    low, high, error = bounds(effect)
    assert error > 0
    assert (low, high) == pytest.approx((-t.ppf(0.975, 1) * error, t.ppf(0.975, 1) * error))


def test_bad_lengths_and_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="lemma has shape"):
        crossed_bootstrap([1.0, 2.0], {"lemma": [0]}, seed=0)
    with pytest.raises(ValueError, match="weights have shape"):
        crossed_bootstrap([1.0, 2.0], {"lemma": [0, 1]}, weight_Q=[1.0], seed=0)
    for bad in (-1.0, NAN, np.inf):
        with pytest.raises(ValueError, match="weights must be finite"):
            crossed_bootstrap([1.0, 2.0], {"lemma": [0, 1]}, weight_Q=[1.0, bad], seed=0)


def test_an_effect_is_written_with_its_interval() -> None:
    effect = Effect(0.1234, -0.05, 0.3, 0.09, 0.25, 10, {"lemma": 4})
    assert effect.format("+.2f") == "+0.12 [-0.05, +0.30]"
    assert replace(effect, low=None, high=None).format(".1f") == "0.1"


def test_signed_rank_is_the_share_of_signs_with_a_rank_sum_as_extreme() -> None:
    differences = [0.3, -1.1, 2.0, 1.7, 0.9, -0.2, 3.1]
    ranks = [1 + sum(abs(other) < abs(d) for other in differences) for d in differences]
    middle = sum(ranks) / 2
    seen = abs(sum(r for r, d in zip(ranks, differences, strict=True) if d > 0) - middle)
    extreme = [
        abs(sum(r for r, sign in zip(ranks, signs, strict=True) if sign) - middle) >= seen
        for signs in itertools.product((False, True), repeat=len(ranks))
    ]
    assert signed_rank(differences) == pytest.approx(np.mean(extreme))
    assert signed_rank([*differences, NAN, 0.0]) == signed_rank(differences)
    assert signed_rank([-d for d in differences]) == signed_rank(differences)
    assert signed_rank([1, 2, 3, 4, 5]) == 2 / 32


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [NAN], [2.0]])
def test_signed_rank_without_evidence_is_one(values: list[float]) -> None:
    assert signed_rank(values) == 1.0


def test_holm_on_values_worked_out_by_hand() -> None:
    assert np.allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert np.allclose(holm([0.5, 0.6]), [1.0, 1.0])
    assert np.allclose(holm([0.02]), [0.02])
    assert holm([]).shape == (0,)


def test_holm_rejects_what_the_step_down_procedure_rejects() -> None:
    rng = np.random.default_rng(15)
    for _ in range(200):
        p = np.round(rng.random(rng.integers(1, 9)) ** 3, 2)  # rounded, so that ties occur
        adjusted = holm(p)
        for level in (0.013, 0.053, 0.203, 0.507):
            rejected: set[int] = set()
            for step, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
                if p[index] * (len(p) - step) > level:
                    break
                rejected.add(index)
            assert {i for i in range(len(p)) if adjusted[i] <= level} == rejected


def test_holm_does_not_count_missing_values() -> None:
    assert np.allclose(holm([NAN, 0.01, 0.04]), [NAN, 0.02, 0.04], equal_nan=True)
    for bad in (-0.1, 1.1):
        with pytest.raises(ValueError, match="p-values"):
            holm([0.5, bad])


def naive_gap(ranked: list[float]) -> float:
    """Generalised average precision of gold weights in the order of the system, by its definition."""

    def gained(weights: list[float]) -> float:
        return sum(sum(weights[: i + 1]) / (i + 1) for i in range(len(weights)) if weights[i] > 0)

    return gained(ranked) / gained(sorted(ranked, reverse=True))


def test_gap_on_values_worked_out_by_hand() -> None:
    # gold 3, 0, 1 in the order of the system: 3 + 4/3; at best 3 + 2
    assert generalised_average_precision([0.9, 0.5, 0.1], [3, 0, 1]) == pytest.approx((3 + 4 / 3) / 5)
    assert generalised_average_precision([0.1, 0.5, 0.9], [0, 2, 4]) == 1.0
    assert generalised_average_precision([-np.inf, 0.0], [1, 0]) == 0.5
    # weights of 0 and 1 make it the average precision
    assert generalised_average_precision([4, 3, 2, 1], [0, 1, 0, 1]) == pytest.approx((1 / 2 + 2 / 4) / 2)


def test_gap_is_its_definition_at_the_worst_order_of_equal_scores() -> None:
    rng = np.random.default_rng(17)
    for _ in range(60):
        size = int(rng.integers(1, 6))
        scores, gold = rng.integers(4, size=size), rng.integers(4, size=size).astype(float)
        if not gold.any():
            continue
        orders = (
            order
            for order in itertools.permutations(range(size))
            if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
        )
        worst = min(naive_gap([float(gold[i]) for i in order]) for order in orders)
        assert generalised_average_precision(scores, gold) == pytest.approx(worst)


def test_gap_of_missing_and_bad_input() -> None:
    assert math.isnan(generalised_average_precision([1.0, 2.0], [0.0, 0.0]))
    assert math.isnan(generalised_average_precision([], []))
    assert math.isnan(generalised_average_precision([1.0, NAN], [1.0, 0.0]))
    with pytest.raises(ValueError, match="2 scores for 1"):
        generalised_average_precision([1.0, 2.0], [1.0])
    for bad in (-1.0, NAN, np.inf):
        with pytest.raises(ValueError, match="gold weights"):
            generalised_average_precision([1.0, 2.0], [1.0, bad])


def test_measures_evaluated_together_are_those_evaluated_alone() -> None:
    values, weights, labels = unbalanced(seed=3)
    rng = np.random.default_rng(4)
    value_MQ = np.stack(
        [values, values**2, np.where(rng.random(len(values)) < 0.3, NAN, values), np.full(len(values), NAN)]
    )
    weight_MQ = np.stack([weights, weights, weights, weights])
    weight_MQ[1, :5] = 7
    factors = dict(zip("abc", labels, strict=True))
    together = crossed_bootstraps(value_MQ, factors, weight_MQ=weight_MQ, seed=5)
    for got, value_Q, weight_Q in zip(together, value_MQ, weight_MQ, strict=True):
        alone = crossed_bootstrap(value_Q, factors, weight_Q=weight_Q, seed=5)
        assert (got.n, got.clusters) == (alone.n, alone.clusters)
        for name in ("mean", "low", "high", "standard_error", "smallest"):
            assert getattr(got, name) == pytest.approx(getattr(alone, name), abs=1e-12, nan_ok=True), name
    with pytest.raises(ValueError, match="shape"):
        crossed_bootstraps(value_MQ, factors, weight_MQ=weights, seed=5)


def test_equal_values_have_no_interval_over_seeds_even_if_their_mean_is_rounded() -> None:
    assert np.std([0.1] * 3, ddof=1) > 0
    assert mean_over_seeds([0.1] * 3) == Effect(0.1, None, None, None, None, 3, {"seed": 3})

"""Differences over seeds: against hand cases, naive definitions and scipy's own tests."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import nct, t, ttest_1samp, ttest_rel

from analysis.compare.seeds import (
    ALL_EQUAL,
    BOOTSTRAP_T,
    MOST_FOR_T,
    PAIRED_T,
    TOO_FEW,
    Difference,
    adjusted,
    excludes,
    hierarchical_bootstrap,
    number_of_tests,
    paired,
    smallest_shown,
    verdict,
)
from analysis.compare.statistics import Effect, mean_over_seeds

NAN, INF = math.nan, math.inf
MEASURED = st.integers(-1000, 1000).map(lambda k: k / 64)


def runs(values, first=0):
    return dict(enumerate(map(float, values), start=first))


def difference_of(values):
    """The difference of an arm with these values from a baseline of zeros."""
    return paired(runs(values), runs(np.zeros(len(values))))


def made(mean=1.0, error=0.2, p=0.01, n=5, width=0.5):
    return Difference(Effect(mean, mean - width, mean + width, error, 0.9, n, {"seed": n}), p, n, (), PAIRED_T, None)


# ------------------------------------------------------------------------------------------------------------- paired t


@given(st.lists(st.tuples(MEASURED, MEASURED), min_size=2, max_size=MOST_FOR_T))
def test_up_to_ten_pairs_it_is_scipys_paired_t_test(both):
    arm, baseline = np.array(both).T
    found = paired(runs(arm), runs(baseline))
    difference = arm - baseline
    assert found.n == len(both) and found.effect.mean == pytest.approx(difference.mean(), abs=1e-12)
    if np.ptp(difference) == 0:
        p = None if difference[0] else 1.0
        assert (found.method, found.p, found.effect.low, found.effect.standard_error) == (ALL_EQUAL, p, None, None)
        return
    expected = ttest_rel(arm, baseline)
    ends = expected.confidence_interval(0.95)
    assert found.method == PAIRED_T
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert (found.effect.low, found.effect.high) == pytest.approx((ends.low, ends.high), rel=1e-9, abs=1e-9)


def test_a_difference_worked_out_by_hand():
    # differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t(.975, 2) = 4.3027
    found = paired({7: 2.0, 8: 4.0, 9: 6.0}, {9: 3.0, 8: 2.0, 7: 1.0})
    assert found.effect.mean == 2 and found.effect.standard_error == pytest.approx(1 / math.sqrt(3))
    assert found.effect.low == pytest.approx(2 - 4.3027 / math.sqrt(3), abs=1e-4)
    # var(2, 4, 6) = 4, var(1, 2, 3) = 1, var(1, 2, 3) = 1 of the differences
    assert found.variance_removed == pytest.approx(1 - 1 / 5)
    assert (found.n, found.left_out) == (3, ())


def test_a_run_without_a_finite_partner_is_left_out_and_named():
    arm = {1: 5.0, 2: NAN, 3: 7.0, 4: 9.0, 6: 1.0}
    baseline = {1: 4.0, 2: 2.0, 3: INF, 4: 7.0, 5: 1.0}
    found = paired(arm, baseline)
    assert (found.n, found.left_out) == (2, (2, 3, 5, 6))
    assert found == replace(paired({1: 5.0, 4: 9.0}, {1: 4.0, 4: 7.0}), left_out=(2, 3, 5, 6))


def test_given_pairs_are_compared_in_order():
    arm, baseline = {10: 1.0, 11: 5.0, 12: 2.0}, {0: 3.0, 1: 4.0, 2: 8.0, 3: NAN}
    found = paired(arm, baseline, [(10, 2), (11, 0), (12, 3), (13, 1)])
    assert (found.effect.mean, found.n, found.left_out) == (-2.5, 2, (12, 13))  # 1 - 8 and 5 - 3
    for twice in ([(10, 0), (10, 1)], [(10, 0), (11, 0)]):
        with pytest.raises(ValueError, match="a seed twice"):
            paired(arm, baseline, twice)


@pytest.mark.parametrize(("arm", "n"), [({}, 0), ({1: 2.0}, 1), ({1: 2.0, 2: NAN}, 1)])
def test_fewer_than_two_pairs_have_no_interval(arm, n):
    found = paired(arm, {1: 1.5, 2: 1.0})
    assert (found.n, found.method, found.p, found.effect.low) == (n, TOO_FEW, None, None)
    assert math.isnan(found.effect.mean) if n == 0 else found.effect.mean == 0.5
    assert verdict(found, NAN) == TOO_FEW


@pytest.mark.parametrize("n", [2, 3, 12])
def test_equal_differences_have_no_interval_even_if_rounding_makes_them_differ(n):
    baseline = {seed: seed / 10 for seed in range(n)}
    arm = {seed: value + 0.3 for seed, value in baseline.items()}
    if n > 2:
        assert len({arm[seed] - baseline[seed] for seed in range(n)}) > 1  # what rounding leaves
    found = paired(arm, baseline)
    assert (found.method, found.p, found.effect.low, found.effect.smallest) == (ALL_EQUAL, None, None, None)
    assert found.effect.mean == pytest.approx(0.3)
    assert verdict(found, NAN) == ALL_EQUAL
    same = paired(baseline, baseline)
    assert (same.method, same.effect.mean, same.p) == (ALL_EQUAL, 0, 1.0)


def test_differences_that_are_zero_up_to_rounding_are_zero():
    sums = [0.1 + 0.2, 0.3, 0.3]
    assert sums[0] != sums[1]
    found = difference_of([0.0, 0.0, 0.0])
    rounded = paired(runs(sums), runs([0.3] * 3))
    assert (rounded.effect, rounded.p, rounded.method) == (found.effect, 1.0, ALL_EQUAL)
    assert difference_of([1e-30] * 3).effect.mean == 1e-30


def test_pairing_removes_what_the_arms_share_and_nothing_else():
    random = np.random.default_rng(0)
    shared, own, other = random.normal(size=(3, 20_000))
    removed = paired(runs(3 * shared + own), runs(3 * shared + other), resamples=99).variance_removed
    assert removed == pytest.approx(9 / 10, abs=0.01)
    assert paired(runs(own), runs(other), resamples=99).variance_removed == pytest.approx(0, abs=0.03)
    assert paired(runs(own), runs(-own), resamples=99).variance_removed == pytest.approx(-1)
    assert paired(runs(own[:2]), runs(other[:2])).variance_removed is None
    assert paired(runs([1, 1, 1]), runs([2, 2, 2])).variance_removed is None


@given(st.lists(MEASURED, min_size=2, max_size=15), st.sampled_from([0.25, 1.0, 8.0]), st.integers(-5, 5))
@settings(max_examples=40)
def test_the_interval_moves_and_scales_with_the_differences_and_turns_with_their_sign(values, scale, shift):
    found, moved = difference_of(values), difference_of(np.array(values) * scale + shift)
    assert moved.method == found.method
    if found.effect.low is None:
        return
    ends = np.array([found.effect.low, found.effect.high]) * scale + shift
    assert [moved.effect.low, moved.effect.high] == pytest.approx(ends, rel=1e-9, abs=1e-9)
    if len(values) <= MOST_FOR_T:
        turned = difference_of(-np.array(values))
        assert (turned.effect.low, turned.effect.high) == pytest.approx((-found.effect.high, -found.effect.low))
        assert turned.p == pytest.approx(found.p)


@given(st.lists(MEASURED, min_size=2, max_size=15), st.sampled_from([99, 199, 500]))
@settings(max_examples=60)
def test_p_is_below_5_percent_where_the_interval_excludes_zero(values, resamples):
    found = paired(runs(values), runs(np.zeros(len(values))), resamples=resamples)
    if found.effect.low is not None and abs(found.p - 0.05) > 1e-9:
        assert (found.p < 0.05) == (not found.effect.low <= 0 <= found.effect.high)


# ---------------------------------------------------------------------------------------------- what few seeds can show


@pytest.mark.parametrize(("n", "factor"), [(3, 2.48), (5, 1.24), (8, 0.84)])
def test_the_mean_that_is_significant_in_standard_deviations_of_the_differences(n, factor):
    unit = np.linspace(-1, 1, n)
    unit /= unit.std(ddof=1)
    assert difference_of(unit + factor + 0.01).p < 0.05 < difference_of(unit + factor - 0.01).p
    assert factor == pytest.approx(t.ppf(0.975, n - 1) / math.sqrt(n), abs=0.005)


@pytest.mark.parametrize(("n", "factor"), [(3, 3.3), (5, 1.7), (8, 1.2)])
def test_the_smallest_difference_with_80_percent_power(n, factor):
    unit = np.linspace(-1, 1, n)
    found = difference_of(unit / unit.std(ddof=1))
    assert found.effect.smallest == pytest.approx(factor, abs=0.05)
    critical = t.ppf(0.975, n - 1)
    shift = found.effect.smallest * math.sqrt(n)
    assert nct.sf(critical, n - 1, shift) == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize("tests", [1, 2, 8])
def test_the_smallest_difference_among_several_arms_is_that_of_the_strictest_level(tests):
    found = difference_of([1.0, 2.0, 4.0, 3.0])
    smallest = smallest_shown(found, tests)
    critical = t.ppf(1 - 0.025 / tests, 3)
    assert nct.sf(critical, 3, smallest / found.effect.standard_error) == pytest.approx(0.8, abs=1e-6)
    if tests == 1:
        assert smallest == pytest.approx(found.effect.smallest)
    assert smallest_shown(difference_of([1.0])) is None


# -------------------------------------------------------------------------------------------------------- the bootstrap


def naive_bootstrap_t(observations, resamples, seed):
    """Interval and p-value by the definition, with loops; its random numbers are its own."""
    random = np.random.default_rng(seed)

    def mean_and_error(groups):
        means = [sum(group) / len(group) for group in groups]
        centre = sum(means) / len(means)
        variance = sum((mean - centre) ** 2 for mean in means) / (len(means) - 1)
        return centre, math.sqrt(variance / len(means))

    mean, error = mean_and_error(observations)
    found = []
    for _ in range(resamples):
        groups = [observations[random.integers(len(observations))] for _ in observations]
        drawn = [[group[random.integers(len(group))] for _ in group] for group in groups]
        drawn_mean, drawn_error = mean_and_error(drawn)
        found.append((drawn_mean - mean) / drawn_error)
    low, high = np.quantile(found, [0.025, 0.975])
    above = np.mean(np.array(found) >= mean / error)
    return mean - high * error, mean - low * error, 2 * min(above, 1 - above)


def test_more_than_ten_pairs_are_a_studentised_bootstrap():
    values = np.random.default_rng(3).lognormal(size=14) - 0.8
    found = paired(runs(values), runs(np.zeros(14)), resamples=40_000)
    low, high, p = naive_bootstrap_t([[value] for value in values], 8_000, 4)
    assert found.method == BOOTSTRAP_T and found.n == 14
    width = high - low
    assert (found.effect.low, found.effect.high) == pytest.approx((low, high), abs=0.04 * width)
    assert found.p == pytest.approx(p, abs=0.015)
    assert found.effect.high - found.effect.mean > 1.3 * (found.effect.mean - found.effect.low)  # skewed, as the values
    reference = mean_over_seeds(values)
    assert (found.effect.standard_error, found.effect.smallest) == (reference.standard_error, reference.smallest)


def test_seeds_are_drawn_first_and_then_observations_within_them():
    random = np.random.default_rng(5)
    observations = [list(random.normal(size=1) + random.normal(size=k)) for k in [1, 2, 3, 4, 6, 9] * 2]
    found = hierarchical_bootstrap(observations, seed=0, resamples=40_000)
    low, high, _ = naive_bootstrap_t(observations, 8_000, 6)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.04 * (high - low))
    means = [np.mean(each) for each in observations]
    assert found.mean == pytest.approx(np.mean(means))
    assert found.standard_error == pytest.approx(np.std(means, ddof=1) / math.sqrt(12))
    assert (found.n, found.clusters) == (50, {"seed": 12})


def test_with_one_observation_a_seed_it_is_the_interval_of_paired():
    values = np.random.default_rng(7).normal(size=15)
    assert hierarchical_bootstrap(values, seed=0) == difference_of(values).effect


def test_from_few_seeds_it_is_students_t_over_their_means():
    observations = [[1.0, 3.0], [NAN, 4.0, 8.0], [5.0], [NAN, INF], []]
    found = hierarchical_bootstrap(observations, seed=0)
    expected = ttest_1samp([2.0, 6.0, 5.0], 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.n, found.clusters) == (5, {"seed": 3})
    assert math.isnan(hierarchical_bootstrap([], seed=0).mean)


def test_the_bootstrap_depends_on_its_seed_alone():
    values = np.random.default_rng(8).normal(size=12)
    assert difference_of(values) == difference_of(values)
    assert paired(runs(values), runs(np.zeros(12)), seed=1).effect != difference_of(values).effect


def test_too_few_resamples_are_refused():
    values = np.random.default_rng(9).normal(size=12)
    with pytest.raises(ValueError, match="resamples is 38"):
        hierarchical_bootstrap(values, seed=0, resamples=38)
    found = hierarchical_bootstrap(values, seed=0, resamples=39)
    assert found.low < found.mean < found.high


def test_where_most_differences_are_equal_resamples_say_nothing_and_it_is_students_t():
    values = [0.0] * 11 + [5.0]
    found = difference_of(values)
    expected = ttest_1samp(values, 0)
    assert (found.method, found.p) == (PAIRED_T, pytest.approx(expected.pvalue))
    assert found.effect.low == pytest.approx(expected.confidence_interval(0.95).low)
    shifted = difference_of(np.array(values) + 0.1)  # 0.1 is no binary fraction: equal draws differ by rounding
    assert shifted.method == PAIRED_T


# ---------------------------------------------------------------------------------------------------- what may be said


def test_p_values_are_adjusted_for_the_number_of_arms():
    arms = {"a": made(p=0.01), "b": made(p=0.04), "c": made(p=None, n=1), "d": made(p=0.03)}
    found = adjusted(arms)
    assert list(found) == ["a", "b", "c", "d"] and math.isnan(found["c"])
    assert [found[arm] for arm in "abd"] == pytest.approx([0.03, 0.06, 0.06])
    assert number_of_tests(arms.values()) == 3
    assert adjusted({}) == {}
    assert number_of_tests([]) == 1


def test_the_number_of_arms_that_p_values_are_adjusted_for_does_not_depend_on_their_differences():
    weak = difference_of([1.0, 0.4, 1.8, 1.2])
    clear = difference_of([1.0, 1.1, 0.9, 1.05])
    zero, equal = difference_of([0.0] * 4), difference_of([0.5] * 4)
    assert adjusted({0: weak, 1: zero, 2: clear}) == pytest.approx({0: 2 * weak.p, 1: 1.0, 2: 3 * clear.p})
    among = adjusted({0: weak, 1: equal, 2: clear})  # the equal one is first, and has no p-value itself
    assert math.isnan(among[1])
    assert (among[0], among[2]) == pytest.approx((weak.p, 2 * clear.p))
    assert number_of_tests([weak, zero, clear]) == number_of_tests([weak, equal, clear]) == 3
    assert adjusted({0: weak, 1: difference_of([0.0])})[0] == weak.p  # one pair is no test


@pytest.mark.parametrize(
    ("difference", "adjusted_p", "said"),
    [
        (made(mean=1.0), 0.01, "higher"),
        (made(mean=-1.0), 0.05, "lower"),
        (made(mean=1.0), 0.051, "no difference shown; one of 0.752 would be"),  # only after Holm's correction
        (made(mean=0.1), 0.01, "no difference shown; one of 0.752 would be"),
        (made(mean=1.0), NAN, "no difference shown; one of 0.752 would be"),
    ],
)
def test_a_difference_is_claimed_only_if_interval_and_adjusted_p_agree(difference, adjusted_p, said):
    assert verdict(difference, adjusted_p) == said


def test_the_verdict_knows_how_many_arms_there_are():
    assert verdict(made(p=0.2), 0.2, form=".1f") == "no difference shown; one of 0.8 would be"
    assert verdict(made(p=0.2), 0.2, tests=8, form=".1f") == "no difference shown; one of 1.3 would be"


def test_three_seeds_claim_only_what_students_t_claims():
    values = [1.0, 1.1, 1.3]  # every resample is above zero
    found = difference_of(values)
    assert (found.method, verdict(found, found.p)) == (PAIRED_T, "higher")
    wider = difference_of([1.0, 2.0, 6.0])  # so is every resample of these
    assert verdict(wider, wider.p).startswith("no difference shown; one of")


def test_equivalence_is_an_interval_within_the_bounds():
    effect = made(mean=0.1, width=0.5).effect
    assert excludes(effect, 0.61) and not excludes(effect, 0.6) and not excludes(effect, 0.5)
    assert not excludes(made(mean=-0.3, width=0.5).effect, 0.7)
    assert not excludes(mean_over_seeds([1.0]), 100)

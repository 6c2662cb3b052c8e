"""Shares and rates: against hand cases, naive definitions and scipy's own routines."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, chi2, poisson, t

from analysis.compare.rates import (
    EXACT,
    MOST_FLIPPED,
    OVER_RUNS,
    fisher,
    least_p,
    mcnemar,
    poisson_rate,
    proportion,
    rate_over_seeds,
    share_over_seeds,
    sign_flip,
)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_share_has_scipys_clopper_pearson_interval(share):
    k, n = share
    found = proportion(k, n)
    two_sided = binomtest(k, n).proportion_ci(0.95, "exact")
    one_sided = binomtest(k, n, alternative="less").proportion_ci(0.95, "exact")
    assert found.share == k / n
    assert (found.low, found.high) == pytest.approx((two_sided.low, two_sided.high), abs=1e-9)
    assert found.at_most == pytest.approx(one_sided.high, abs=1e-9)
    if k < n:  # the end is where so few are seen in 2.5% of experiments
        assert binom.cdf(k, n, found.high) == pytest.approx(0.025)


def test_none_of_three_is_at_most_63_percent():
    found = proportion(0, 3)
    assert found.at_most == pytest.approx(1 - 0.05 ** (1 / 3)) == pytest.approx(0.63, abs=0.002)
    assert (found.low, found.high) == pytest.approx((0, 1 - 0.025 ** (1 / 3)))  # two-sided: 0.71
    whole = proportion(3, 3)
    assert (whole.low, whole.high, whole.at_most) == pytest.approx((0.025 ** (1 / 3), 1, 1))


def test_a_share_of_nothing_and_impossible_shares():
    nothing = proportion(0, 0)
    assert math.isnan(nothing.share) and (nothing.low, nothing.high, nothing.at_most) == (0, 1, 1)
    for k, n in ((-1, 3), (4, 3), (0, -1)):
        with pytest.raises(ValueError, match="no share"):
            proportion(k, n)
        with pytest.raises(ValueError, match="no share"):
            fisher(k, n, 1, 2)
        with pytest.raises(ValueError, match="no share"):
            fisher(1, 2, k, n)


@given(st.integers(0, 200), st.floats(0.01, 1e6))
def test_a_rate_has_the_exact_poisson_interval(events, exposure):
    found = poisson_rate(events, exposure)
    low = chi2.ppf(0.025, 2 * events) / 2 if events else 0
    assert (found.rate, found.runs, found.dispersion, found.method) == (events / exposure, 1, None, EXACT)
    assert found.low * exposure == pytest.approx(low, rel=1e-6, abs=1e-9)
    assert found.high * exposure == pytest.approx(chi2.ppf(0.975, 2 * events + 2) / 2, rel=1e-6)
    assert found.at_most * exposure == pytest.approx(chi2.ppf(0.95, 2 * events + 2) / 2, rel=1e-6)
    assert poisson.cdf(events, found.high * exposure) == pytest.approx(0.025)


def test_no_spike_in_1800_steps_is_at_most_1_7_in_1000():
    found = poisson_rate(0, 1800)
    assert 1000 * found.at_most == pytest.approx(1000 * -math.log(0.05) / 1800) == pytest.approx(1.7, abs=0.05)
    assert 1000 * found.high == pytest.approx(1000 * -math.log(0.025) / 1800) == pytest.approx(2.05, abs=0.005)


def test_runs_that_agree_are_one_long_run():
    found = poisson_rate([2, 3, 2, 3], [600] * 4)
    alone = poisson_rate(10, 2400)
    assert found.dispersion == pytest.approx(np.var([2, 3, 2, 3], ddof=1) / 2.5)
    assert (found.low, found.high, found.at_most, found.method) == (alone.low, alone.high, alone.at_most, EXACT)
    assert (found.events, found.exposure, found.runs) == (10, 2400, 4)


def test_clustered_events_have_the_interval_of_the_runs_rates():
    # rates .000, .010, .050: mean .02, standard deviation .02646
    found = poisson_rate([0, 6, 30], [600] * 3)
    rates = np.array([0, 0.01, 0.05])
    error = rates.std(ddof=1) / math.sqrt(3)
    assert found.method == OVER_RUNS
    assert found.dispersion == pytest.approx(np.var([0, 6, 30], ddof=1) / 12)
    assert found.high == pytest.approx(0.02 + t.ppf(0.975, 2) * error)
    assert found.at_most == pytest.approx(0.02 + t.ppf(0.95, 2) * error)
    assert found.low == 0  # the t interval goes below


def test_with_unequal_exposures_the_rate_is_that_of_the_sums():
    events, exposures = [1, 9, 4], [100.0, 400.0, 500.0]
    found = poisson_rate(events, exposures)
    expected = [0.014 * exposure for exposure in exposures]
    assert found.rate == pytest.approx(0.014)
    assert found.dispersion == pytest.approx(sum((k - e) ** 2 / e for k, e in zip(events, expected, strict=True)) / 2)
    residuals = [k - e for k, e in zip(events, expected, strict=True)]
    error = math.sqrt(3 / 2 * sum(r * r for r in residuals)) / 1000
    assert found.method == OVER_RUNS and found.high == pytest.approx(0.014 + t.ppf(0.975, 2) * error)


@given(st.lists(st.tuples(st.integers(0, 8), st.sampled_from([1.0, 2.0, 5.0])), min_size=1, max_size=30))
def test_what_runs_say_never_narrows_the_interval(each_run):
    events, exposures = zip(*each_run, strict=True)
    found, alone = poisson_rate(events, exposures), poisson_rate(sum(events), sum(exposures))
    assert 0 <= found.low <= alone.low <= found.rate <= alone.high <= found.high
    assert found.at_most >= alone.at_most
    if found.method == EXACT:
        assert (found.low, found.high) == pytest.approx((alone.low, alone.high))


def test_many_runs_of_which_one_has_a_burst():
    found = poisson_rate([2] + [0] * 99, np.ones(100))  # Student's t alone would end at .06
    assert found.method == OVER_RUNS and found.high == pytest.approx(poisson_rate(2, 100).high)
    assert found.low == 0


def test_impossible_counts_and_exposures_are_refused():
    for events in (-1, 1.5, math.nan, math.inf):
        with pytest.raises(ValueError, match="whole numbers"):
            poisson_rate(events, 1.0)
    for exposure in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="above 0"):
            poisson_rate(1, exposure)
    for events, exposure in (([1, 2], [1.0]), ([], []), ([[1]], [[1.0]])):
        with pytest.raises(ValueError, match="one of each a run"):
            poisson_rate(events, exposure)


def naive_fisher(k1, n1, k2, n2):
    """The probability, given the total, of all tables at most as probable as this one."""
    total = k1 + k2
    ways = {k: math.comb(n1, k) * math.comb(n2, total - k) for k in range(max(0, total - n2), min(n1, total) + 1)}
    return sum(way for way in ways.values() if way <= ways[k1]) / sum(ways.values())


@given(*[st.integers(0, 9)] * 4)
def test_fishers_test_is_its_definition(k1, more1, k2, more2):
    n1, n2 = k1 + more1, k2 + more2
    assert fisher(k1, n1, k2, n2) == pytest.approx(naive_fisher(k1, n1, k2, n2))


def test_what_three_and_five_seeds_can_show_of_a_share():
    assert fisher(3, 3, 0, 3) == pytest.approx(0.10)
    assert fisher(5, 5, 0, 5) == pytest.approx(2 / math.comb(10, 5)) == pytest.approx(0.008, abs=0.0005)


@given(st.dictionaries(st.integers(0, 20), st.booleans()), st.dictionaries(st.integers(0, 20), st.booleans()))
def test_mcnemars_test_is_the_binomial_test_of_the_seeds_that_differ(outcomes, baseline):
    differ = [outcomes[seed] for seed in outcomes if seed in baseline and outcomes[seed] != baseline[seed]]
    expected = binomtest(sum(differ), len(differ)).pvalue if differ else 1.0
    assert mcnemar(outcomes, baseline) == pytest.approx(expected) == pytest.approx(mcnemar(baseline, outcomes))


def test_five_seeds_that_all_differ_are_not_enough_for_mcnemars_test_and_six_are():
    for seeds, p in ((5, 0.0625), (6, 0.03125)):
        assert mcnemar(dict.fromkeys(range(seeds), True), dict.fromkeys(range(seeds), False)) == pytest.approx(p)


def test_a_share_over_several_runs_of_a_seed_has_students_interval_over_seeds():
    """Shares 1, 1/2 and 0 of three seeds: mean 1/2, standard error 1/2 / sqrt(3), t(.975, 2) = 4.303; cut at 0 and 1."""
    found = share_over_seeds({0: [True, True], 1: [True, False], 2: [False, False]})
    assert (found.k, found.n, found.share, found.low, found.high) == (3, 6, 0.5, 0.0, 1.0)
    shares = [0.75, 0.5, 0.5, 0.75]
    found = share_over_seeds(
        {s: [True] * int(4 * share) + [False] * int(4 - 4 * share) for s, share in enumerate(shares)}
    )
    half = t.ppf(0.975, 3) * np.std(shares, ddof=1) / 2
    assert (found.k, found.n) == (10, 16)
    assert (found.low, found.high) == pytest.approx((0.625 - half, 0.625 + half))
    assert math.isnan(found.at_most)
    assert share_over_seeds({0: [True], 1: [False], 7: [True]}) == proportion(2, 3)


@pytest.mark.parametrize("outcomes", [{0: [True, False], 1: [True, True]}, {s: [False, False] for s in range(6)}])
def test_two_seeds_and_equal_ones_have_plain_counts(outcomes):
    found = share_over_seeds(outcomes)
    assert found.n == 2 * len(outcomes)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_spikes_of_one_seed_at_several_rates_are_one_count():
    """Seeds that differ widen the interval as much as runs would, however many runs each has."""
    by_seed = {0: [(0, 300.0), (0, 300.0)], 1: [(1, 300.0), (5, 300.0)], 2: [(10, 300.0), (20, 300.0)]}
    assert rate_over_seeds(by_seed) == poisson_rate([0, 6, 30], [600] * 3)
    assert rate_over_seeds({0: [(2, 5.0)], 1: [(1, 5.0)]}) == poisson_rate([2, 1], [5, 5])
    two = rate_over_seeds({0: [(2, 5.0), (1, 5.0)], 1: [(1, 5.0)]})
    assert (two.events, two.rate) == (4, 4 / 15)
    assert math.isnan(two.low)


SHARES = st.integers(1, 9).flatmap(
    lambda runs: st.lists(
        st.tuples(st.integers(0, runs), st.integers(0, runs)).map(lambda both: tuple(Fraction(k, runs) for k in both)),
        min_size=1,
        max_size=8,
    )
)


@given(SHARES)
def test_flipping_signs_is_the_exact_test_by_enumeration(both):
    """In fractions, without the rounding of the shares that are compared."""
    exact = [own - base for own, base in both]
    sums = [
        sum(s * d for s, d in zip(signs, exact, strict=True)) for signs in itertools.product((1, -1), repeat=len(exact))
    ]
    expected = sum(abs(each) >= abs(sum(exact)) for each in sums) / len(sums)
    found = sign_flip([float(own) - float(base) for own, base in both])
    assert found == expected
    assert least_p(len(both)) <= found <= 1
    assert sign_flip([float(base) - float(own) for own, base in both]) == found


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=MOST_FLIPPED))
def test_of_single_runs_flipping_signs_is_mcnemars_test(both):
    sides = ({seed: pair[side] for seed, pair in enumerate(both)} for side in (0, 1))
    assert sign_flip([int(own) - int(base) for own, base in both]) == pytest.approx(mcnemar(*sides))


def test_flipping_signs_by_hand():
    assert sign_flip([1 / 7] * 7 + [0.0]) == 2 / 128
    assert sign_flip([2.0, 2.0, -1.0]) == 0.5  # the eight sums: 5, -5, 3, -3, and 1 or -1 four times
    assert sign_flip([0.0] * 5) == 1
    assert sign_flip([0.25] * 8) == least_p(8) == 2 / 256
    assert (least_p(1), least_p(0)) == (1, 1)
    with pytest.raises(ValueError, match="13 differences; the signs of at most 12"):
        sign_flip([1.0] * 13)

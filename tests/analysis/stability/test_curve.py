from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.stability.curve import (
    Recovery,
    capped,
    excess,
    median_duration,
    moving_median,
    noise,
    noise_floor,
    recoveries,
    steps_within,
    survival,
)


def test_noise_is_that_of_one_value_and_does_not_see_a_trend_or_an_outlier() -> None:
    random = np.random.default_rng(0)
    values = np.linspace(6, 4, 4000) + random.normal(0, 0.1, 4000)
    values[17] = 100
    assert noise(values) == pytest.approx(0.1, rel=0.1)


def test_a_moving_median_passes_over_one_value_and_is_of_fewer_at_the_ends() -> None:
    assert moving_median(np.array([0, 0, 9, 0, 0, 0.0])).tolist() == [0] * 6
    assert moving_median(np.array([3.0, 1.0, 2.0]))[0] == 2


@pytest.mark.parametrize("length", range(1, 12))
def test_a_moving_median_is_that_of_a_loop(length: int) -> None:
    values = np.random.default_rng(length).normal(size=length)
    naive = [np.median(values[max(0, i - 2) : i + 3]) for i in range(length)]
    np.testing.assert_array_equal(moving_median(values), naive)
    np.testing.assert_array_equal(moving_median(np.stack([values, -values]))[1], [-each for each in naive])


def test_excess_is_the_area_of_a_bump_and_nothing_of_a_falling_curve() -> None:
    falling = np.linspace(6, 4, 100)
    assert excess(falling).sum() == pytest.approx(0)
    bump = np.full(100, 4.0)
    bump[40:50] += 0.5
    assert excess(bump).sum() == pytest.approx(10 * 0.5)


def test_excess_of_noise_alone_is_about_its_floor_and_that_of_a_spike_is_beyond_it() -> None:
    random = np.random.default_rng(3)
    curves = 5 + np.exp(-np.arange(200) / 60) + random.normal(0, 0.05, (50, 200))
    own = np.array([excess(curve).sum() for curve in curves])
    floors = np.array([noise_floor(curve, noise(curve)).sum() for curve in curves])
    assert floors.mean() == pytest.approx(own.mean(), rel=0.2)
    curves[:, 100:120] += 0.5
    assert (np.array([excess(curve).sum() for curve in curves]) > floors + 5).all()


def test_what_is_not_finite_or_missing_counts_as_the_initial_loss() -> None:
    steps, nll = capped(np.array([1, 2, 3]), np.array([6.0, math.nan, 5.0]), 5, 7.0)
    assert steps.tolist() == [1, 2, 3, 4, 5]
    assert nll.tolist() == [6, 7, 5, 7, 7]


def test_a_spike_lasts_until_the_curve_is_back_at_the_level_before_it() -> None:
    steps, nll = np.arange(1, 101), np.full(100, 4.0)
    nll[49:60] = 5.0  # steps 50 to 60
    assert recoveries(steps, nll, [(50, 52)], 0.01, 100) == [Recovery(50, 11, back=True)]
    nll[49:] = 5.0
    assert recoveries(steps, nll, [(50, 52)], 0.01, 120) == [Recovery(50, 71, back=False)]


def test_a_spike_of_one_value_lasts_a_step() -> None:
    steps, nll = np.arange(1, 101), np.full(100, 4.0)
    nll[49] = 9.0
    assert recoveries(steps, nll, [(50, 50)], 0.01, 100) == [Recovery(50, 1, back=True)]


def test_steps_of_overlapping_spikes_are_counted_once() -> None:
    assert steps_within([Recovery(10, 5, back=True), Recovery(12, 10, back=True), Recovery(40, 1, back=True)]) == 13


def test_survival_is_worked_out_by_hand() -> None:
    times, share = survival([2, 4, 4, 6, 9], [True, True, False, True, False])
    assert times.tolist() == [2, 4, 6]
    assert share.tolist() == pytest.approx([4 / 5, 4 / 5 * 3 / 4, 4 / 5 * 3 / 4 * 1 / 2])


def test_a_median_that_was_not_seen_is_infinite_and_without_spikes_there_is_none() -> None:
    assert median_duration([2, 4, 6], [True, True, True]) == 4
    assert median_duration([2, 9, 9], [True, False, False]) == math.inf
    assert math.isnan(median_duration([], []))

"""The step of a spike that its replay command names."""

import math

import pytest

from stability.detect.events import Spike
from stability.detect.telling import telling_step


def spike(signal, start, peak, height, sigmas):
    return Spike("median_mad", signal, start, start, peak, peak + 3, height, sigmas)


@pytest.mark.parametrize("sigmas", [0.0, 8.0, 40.0])
def test_a_step_of_ordinary_noise_before_the_rise_is_passed_over(sigmas):
    values = {8: 2.0, 9: 2.3, 10: 2.2, 11: 4.5, 12: 6.0, 13: 4.0}
    assert telling_step(spike("loss/nll", 9, 12, 4.0, sigmas), values) == 11


def test_five_sigmas_stand_out_even_under_a_peak_that_is_far_higher():
    values = {9: 2.3, 10: 2.6, 11: 4.5, 12: 42.0}
    assert telling_step(spike("loss/nll", 9, 12, 40.0, 400.0), values) == 10


def test_a_norm_is_judged_by_its_logarithm():
    """From 1 to 100: half of the way is 10."""
    values = {5: 1.5, 6: 11.0, 7: 60.0, 8: 100.0}
    assert telling_step(spike("grad_norm/total", 5, 8, 99.0, 8.0), values) == 6


@pytest.mark.parametrize("values", [{}, {9: 2.0}, {9: 2.0, 12: math.nan}])
def test_without_the_peak_it_is_the_first_step(values):
    assert telling_step(spike("loss/nll", 9, 12, 4.0, 8.0), values) == 9


def test_values_that_are_missing_or_not_finite_do_not_stand_out():
    values = {9: math.inf, 11: 5.5, 12: 6.0}
    assert telling_step(spike("loss/nll", 9, 12, 4.0, 8.0), values) == 11

"""The running-median spike rule: what it finds, what it leaves alone, and that online and offline agree."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stability.spikes import FLOOR, LONGEST, MAD_TO_SIGMA, MINIMUM_HISTORY, THRESHOLD, SpikeDetector, detect


def curve(length=600, seed=0, noise=0.03):
    """A falling loss curve with noise."""
    steps = np.arange(1, length + 1)
    return 3 + 5 / np.sqrt(1 + steps / 20) + noise * np.random.default_rng(seed).standard_normal(length)


def spikes_in(values):
    return detect("loss/nll", range(1, len(values) + 1), values)


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_curve_has_no_spikes(seed):
    assert spikes_in(curve(seed=seed)) == []


@pytest.mark.parametrize("start", [200, 400])
@pytest.mark.parametrize("length", [1, 3, 30])
def test_a_planted_spike_is_one_event_with_its_extent(start, length):
    values = curve()
    values[start : start + length] += 1.0
    (spike,) = spikes_in(values)
    assert (spike.start_step, spike.end_step) == (start + 1, start + length)
    assert spike.start_step <= spike.peak_step <= spike.end_step
    assert spike.height == pytest.approx(1.0, abs=0.4)
    assert spike.recovered


def test_a_level_that_stays_is_not_recovered_and_becomes_the_new_normal():
    values = curve(900)
    values[300:] += 2.0
    (spike,) = spikes_in(values)
    assert (spike.start_step, spike.recovered) == (301, False)
    assert spike.end_step == 300 + LONGEST


def test_a_spike_at_the_end_is_reported_as_not_recovered():
    values = curve()
    values[-2:] += 1.0
    (spike,) = spikes_in(values)
    assert (spike.start_step, spike.end_step, spike.recovered) == (599, 600, False)


def test_values_that_are_not_finite_are_passed_over():
    values = curve()
    values[200], values[300] = math.nan, math.inf
    assert spikes_in(values) == []


def test_a_drop_is_no_spike():
    values = curve()
    values[300:310] -= 1.5
    assert spikes_in(values) == []


@given(st.integers(0, 1000))
def test_the_threshold_is_the_stated_one(seed):
    """A value just above max(6 x 1.4826 x MAD, 5% of the median) over the median of the history is a spike, just below not."""
    history = 3 + 0.1 * np.random.default_rng(seed).standard_normal(MINIMUM_HISTORY)
    median = np.median(history)
    limit = max(THRESHOLD * MAD_TO_SIGMA * np.median(np.abs(history - median)), FLOOR * median)
    for factor, expected in ((1 + 1e-9, 1), (1 - 1e-9, 0)):
        assert len(detect("x", range(len(history) + 1), [*history, median + factor * limit])) == expected


@given(st.integers(1, 599), st.integers(0, 20))
def test_a_restored_detector_goes_on_exactly(cut, seed):
    values = curve(seed=seed)
    values[200:220] += 2
    whole = spikes_in(values)
    first = SpikeDetector("loss/nll")
    found = [first.update(i + 1, v) for i, v in enumerate(values[:cut])]
    second = SpikeDetector.from_state(json.loads(json.dumps(first.state())))
    found += [second.update(cut + i + 1, v) for i, v in enumerate(values[cut:])]
    assert [s for s in (*found, second.finish()) if s is not None] == whole

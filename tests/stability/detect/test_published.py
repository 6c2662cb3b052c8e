"""Each published rule against a plain reading of it, and the rules for other kinds of events."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stability.detect.catalogue import detect_rows, make_detector
from stability.detect.events import NonFinite
from tests.stability.detect.detected import detect


def series(seed, length=400):
    """Noise with single outliers, spikes of some steps, and two values that are not finite."""
    random = np.random.default_rng(seed)
    values = 3 + 0.1 * random.standard_normal(length)
    values[random.integers(0, length, 6)] += random.uniform(0.3, 2, 6)
    for start in random.integers(0, length - 20, 3):
        values[start : start + random.integers(2, 20)] += random.uniform(0.3, 8)
    values[random.integers(0, length, 2)] = [math.nan, math.inf]
    return values


def flagged(name, values):
    """The steps inside the rule's events."""
    spikes = detect("x", range(len(values)), values, name)
    return {
        step for spike in spikes for step in range(spike.start_step, spike.end_step + 1) if math.isfinite(values[step])
    }


def finite_before(values):
    """For each finite value: its place, itself, and the finite values before it."""
    return [(i, v, values[:i][np.isfinite(values[:i])]) for i, v in enumerate(values) if math.isfinite(v)]


@given(st.integers(0, 1000))
def test_olmo_core_flags_what_its_monitor_flags(seed):
    values = series(seed)
    expected = {
        i
        for i, value, past in finite_before(values)
        if len(past) >= 128 and value > np.mean(past[-128:]) + 6 * np.std(past[-128:])
    }
    assert flagged("olmo_core", values) == expected


@settings(max_examples=8)
@given(st.integers(0, 1000))
def test_olmo2_flags_and_scores_as_the_paper_says(seed):
    values = series(seed, 1500)
    z = {
        i: (value - np.mean(past[-1000:])) / np.std(past[-1000:])
        for i, value, past in finite_before(values)
        if len(past) >= 128
    }
    assert flagged("olmo2", values) == {i for i, sigmas in z.items() if sigmas >= 7}
    detector = make_detector("olmo2", "x")
    detect_rows(detector, [{"step": i, "x": v} for i, v in enumerate(values)])
    assert detector.score == pytest.approx(sum(abs(sigmas) >= 7 for sigmas in z.values()) / np.isfinite(values).sum())


@given(st.integers(0, 1000))
def test_llmc_puts_the_value_into_its_own_window(seed):
    values = series(seed)
    expected = set()
    for i, value, past in finite_before(values):
        window = np.array([*past[-127:], value])
        if len(window) == 128 and (value - window.mean()) / window.std() > 6:
            expected.add(i)
    assert flagged("llmc", values) == expected


def test_llmc_cannot_see_more_than_eleven_sigmas():
    values = 3 + 0.1 * np.random.default_rng(0).standard_normal(200)
    values[150] = 1e6
    (spike,) = detect("x", range(200), values, "llmc")
    assert spike.sigmas == pytest.approx(math.sqrt(127), rel=1e-6)


@given(st.integers(0, 1000))
def test_llm_foundry_counts_as_its_callback_does(seed):
    values, expected, run = series(seed), set(), []
    for i, value, past in finite_before(values):
        if len(past) >= 100 and value >= 2 * np.mean(past[-100:]):
            run.append(i)
        else:
            run = []
        expected |= set(run) if len(run) > 4 else set()
    assert flagged("llm_foundry", values) == expected


def test_llm_foundry_needs_five_steps_and_starts_at_the_first():
    values = np.full(200, 3.0)
    values[150:154] = 7.0
    assert detect("x", range(200), values, "llm_foundry") == []
    values[150:155] = 7.0
    (spike,) = detect("x", range(200), values, "llm_foundry")
    assert (spike.start_step, spike.end_step) == (150, 154)


@given(st.integers(0, 1000))
def test_loss_ratio_is_to_the_lowest_value_before(seed):
    values = series(seed)
    expected = {i for i, value, past in finite_before(values) if len(past) and value > 1.2 * past.min() > 0}
    assert flagged("loss_ratio", values) == expected


@given(st.integers(0, 1000))
def test_cusum_sums_as_trainscope_does(seed):
    values, expected = series(seed), set()
    values[200:260] += 0.15  # less than two sigmas, but for long
    values[300:330] -= 0.3
    high = low = 0.0
    for i, value, past in finite_before(values):
        if len(past) < 30:
            continue
        middle = np.median(past[-200:])
        z = (value - middle) / max(1.4826 * np.median(np.abs(past[-200:] - middle)), 1e-12)
        high, low = max(0.0, high + z - 1), min(0.0, low + z + 1)
        if high >= 6:
            expected.add(i)
        if high >= 6 or low <= -6:
            high = low = 0.0
    assert flagged("cusum", values) == expected


def test_cusum_sees_a_small_shift_that_no_single_value_shows_and_no_fall():
    values = 3 + 0.1 * np.random.default_rng(0).standard_normal(300)
    assert detect("x", range(300), values, "cusum") == []
    values[200:] += 0.15
    events = detect("x", range(300), values, "cusum")
    assert 200 <= events[0].start_step < 240
    assert detect("x", range(300), np.where(np.arange(300) < 200, 3.0, 2.0), "cusum") == []


@given(st.integers(0, 1000))
def test_kurtosis_is_compared_with_its_first_forty_values(seed):
    values, expected, run = series(seed), set(), []
    first = np.sort(values[np.isfinite(values)][:40])
    spread = np.sort(np.abs(first - first[20]))[20]
    for i, value, past in finite_before(values):
        run = [*run, i] if len(past) >= 40 and value > first[20] + 3 * 1.4826 * spread else []
        expected |= set(run) if len(run) > 2 else set()
    assert flagged("kurtosis", values) == expected


def test_kurtosis_needs_three_values_in_a_row_and_starts_at_the_first():
    values = np.tile([1.0, 2.0, 3.0], 30)  # the limit: 2 + 3 * 1.4826
    values[[60, 61]] = 7.0
    assert detect("x", range(90), values, "kurtosis") == []
    values[62] = 6.44
    assert detect("x", range(90), values, "kurtosis") == []
    values[62] = 6.45
    (spike,) = detect("x", range(90), values, "kurtosis")
    assert (spike.start_step, spike.peak_step, spike.end_step) == (60, 60, 62)


@pytest.mark.parametrize("name", ["olmo_core", "olmo2", "llmc", "cusum"])
def test_a_nan_blinds_no_rule(name):
    values = 3 + 0.1 * np.random.default_rng(0).standard_normal(200)
    values[180] = 20
    seen = detect("x", range(200), values, name)
    values[150] = math.nan
    assert [spike.start_step for spike in detect("x", range(200), values, name)] == [180]
    assert len(seen) == 1


def test_non_finite_is_an_event_for_each_unbroken_row_of_them():
    values = np.zeros(20)
    values[[3, 8, 9, 10, 19]] = [math.nan, math.inf, math.nan, -math.inf, math.nan]
    found = detect("x", range(20), values, "non_finite")
    assert found == [NonFinite("non_finite", "x", first, last) for first, last in ((3, 3), (8, 10), (19, 19))]
    assert found[0].event()["height"] is None

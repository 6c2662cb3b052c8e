from __future__ import annotations

import math
import statistics

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from analysis.report.trend import FEWEST, PART, SURE, trend

VALUES = st.lists(st.floats(-1e3, 1e3) | st.sampled_from([math.nan, math.inf]), max_size=200)


def naive(values: list[float]) -> tuple[str, float]:
    """The definition, in plain Python."""
    count = max(math.floor(PART * len(values)), FEWEST)
    last, before = values[len(values) - count :], values[len(values) - 2 * count : len(values) - count]
    if len(values) < 5 * count or not all(map(math.isfinite, last + before)):
        return "unknown", math.nan
    change = statistics.fmean(last) - statistics.fmean(before)
    error = math.sqrt(statistics.variance(last) / count + statistics.variance(before) / count)
    if abs(change) <= SURE * error:
        return "level", change
    return ("falling" if change < 0 else "rising"), change


@given(VALUES)
def test_the_trend_is_as_defined(values: list[float]) -> None:
    word, change = naive(values)
    found = trend(np.array(values, dtype=np.float64))
    assert found.word == word
    assert math.isclose(found.change, change, rel_tol=1e-9, abs_tol=1e-9) or (math.isnan(change) and word == "unknown")


def test_a_falling_a_rising_and_a_level_series_are_told_apart() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 1000)
    assert trend(noise - np.linspace(0, 5, 1000)).word == "falling"
    assert trend(noise + np.linspace(0, 5, 1000)).word == "rising"
    assert trend(noise).word == "level"
    assert trend(noise[:39]).word == "unknown"


@given(VALUES)
def test_how_far_the_end_is_above_the_lowest_stretch_is_as_defined(values: list[float]) -> None:
    found = trend(np.array(values, dtype=np.float64))
    stretches = [values[end - found.values : end] for end in range(len(values), found.values - 1, -found.values)]
    known = [each for each in stretches if all(map(math.isfinite, each))]
    if found.word == "unknown":
        assert found.above == 0
        return
    lowest = min(known, key=statistics.fmean)
    above = statistics.fmean(known[0]) - statistics.fmean(lowest)
    error = math.sqrt((statistics.variance(known[0]) + statistics.variance(lowest)) / found.values)
    expected = above if above > SURE * error else 0.0
    assert math.isclose(found.above, expected, rel_tol=1e-6, abs_tol=1e-6)


def test_a_loss_that_falls_again_after_a_rise_is_above_its_lowest() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 1000)
    risen = noise + np.where(np.arange(1000) < 600, 3.0, 8 - np.arange(1000) / 500)
    assert trend(risen).word == "falling"
    assert math.isclose(trend(risen).above, 3.1, abs_tol=0.1)
    assert trend(noise - np.linspace(0, 5, 1000)).above == 0.0
    assert trend(noise).above == 0.0

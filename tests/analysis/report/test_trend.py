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

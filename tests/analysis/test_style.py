from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis import style
from configs.errors import InputError


def test_smoothing_is_the_debiased_average_of_its_definition() -> None:
    values = np.array([3.0, np.nan, -1.0, 4.0, np.inf, 1.5, 9.0])
    span = 4
    decay = 1 - 2 / (span + 1)
    expected, total, weight = [], 0.0, 0.0
    for value in values:
        if np.isfinite(value):
            total = decay * total + (1 - decay) * value
            weight = decay * weight + (1 - decay)
        expected.append(total / weight if np.isfinite(value) else np.nan)
    np.testing.assert_allclose(style.smooth_mean(values, span), expected, rtol=1e-13)


def test_a_span_of_one_changes_nothing_and_a_constant_stays_constant() -> None:
    values = np.array([1.0, 5.0, 2.0])
    np.testing.assert_array_equal(style.smooth_mean(values, 1), values)
    np.testing.assert_allclose(style.smooth_mean(np.full(50, 7.0), 20), 7.0)


def test_the_running_median_is_centred_and_skips_what_is_not_finite() -> None:
    values = np.array([1.0, 100.0, 2.0, np.inf, 3.0])
    np.testing.assert_array_equal(style.smooth_median(values, 3), [50.5, 2.0, 51.0, np.nan, 3.0])


def test_thinning_keeps_every_extreme_and_every_gap() -> None:
    values = np.sin(np.arange(10_001) / 50.0)
    values[4321] = 50.0
    values[6000:6100] = np.nan
    kept = style.envelope(values, max_points=400)
    assert len(kept) <= 400
    assert 4321 in kept
    assert np.nanmin(values[kept]) == np.nanmin(values)
    assert np.isnan(values[kept][(kept >= 6000) & (kept < 6100)]).any()
    assert style.envelope(values[:400], max_points=400).tolist() == list(range(400))


def test_arms_differ_without_colour() -> None:
    styles = style.arm_styles([f"arm {i}" for i in range(7)])
    assert len({arm.colour for arm in styles.values()}) == 7
    assert len({arm.marker for arm in styles.values()}) == 7
    assert style.arm_styles(list(styles)) == styles


def test_other_suffixes_are_refused() -> None:
    with pytest.raises(InputError, match=r"\.png or \.svg"):
        style.check_figure_path(Path("curves.pdf"))

"""The calibration error against its definition, and its mean for a calibrated model against all possible answers."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.compare.reliability import DRAWS, calibration_error, equal_bins, error_if_calibrated

confidences = st.lists(st.floats(0.01, 1), min_size=1, max_size=7)


def naive(confidence, right, bins):
    order = sorted(range(len(confidence)), key=lambda i: confidence[i])
    groups = [list(group) for group in np.array_split(order, min(bins, len(order)))]
    gaps = [abs(np.mean([right[i] for i in g]) - np.mean([confidence[i] for i in g])) for g in groups]
    return sum(len(g) * gap for g, gap in zip(groups, gaps, strict=True)) / len(order)


@given(confidences, st.integers(1, 9), st.integers(0, 127))
def test_the_error_is_the_mean_gap_of_the_bins(confidence, bins, answers):
    right = [float(answers >> i & 1) for i in range(len(confidence))]
    error = calibration_error(np.array(confidence), np.array(right), bins)
    assert error == pytest.approx(naive(confidence, right, bins), abs=1e-12)


@settings(max_examples=20)
@given(confidences, st.integers(1, 4))
def test_that_of_a_calibrated_model_is_the_mean_over_all_answers(confidence, bins):
    chance, errors = [], []
    for right in itertools.product([0.0, 1.0], repeat=len(confidence)):
        chance.append(math.prod(p if r else 1 - p for p, r in zip(confidence, right, strict=True)))
        errors.append(naive(confidence, right, bins))
    mean = np.dot(chance, errors)
    deviation = math.sqrt(max(0.0, np.dot(chance, np.square(errors)) - mean**2))
    found = error_if_calibrated(np.array(confidence), bins, seed=0)
    assert found == pytest.approx(mean, abs=4 * deviation / math.sqrt(DRAWS) + 1e-9)


def test_of_many_positions_it_is_what_right_answers_give():
    generator = np.random.default_rng(1)
    confidence_N = generator.uniform(0.1, 0.9, 20_000)
    errors = [
        calibration_error(confidence_N, (generator.random(20_000) < confidence_N).astype(float), 15) for _ in range(30)
    ]
    assert error_if_calibrated(confidence_N, 15, seed=2) == pytest.approx(np.mean(errors), rel=0.12)


@given(st.lists(st.integers(0, 5), max_size=20), st.integers(1, 9))
def test_bins_hold_everything_in_order_and_none_is_empty(keys, bins):
    found = equal_bins(np.array(keys), bins)
    assert sorted(np.concatenate(found)) == list(range(len(keys)))
    assert [keys[i] for at in found for i in at] == sorted(keys)
    sizes = [len(at) for at in found]
    assert max(sizes) - min(sizes) <= 1
    assert not keys or min(sizes) > 0


def test_no_position_has_no_error():
    assert math.isnan(calibration_error(np.empty(0), np.empty(0), 15))

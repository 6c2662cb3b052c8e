"""The measure of the benchmark of detectors, and that its splits are apart."""

from itertools import pairwise

import numpy as np
import pytest

from benchmarks.detectors import AFTER, Fault, cases, decisions, match, measure
from stability.detect.catalogue import make_detector

FAULTS = [Fault("pulse", 100, 104, 6.0), Fault("pulse", 200, 200, 6.0)]


def test_a_decision_hits_from_the_first_step_to_just_after_the_last():
    for step in (100, 104, 104 + AFTER):
        assert match(FAULTS, [step]) == ([step, None], [])
    for step in (99, 104 + AFTER + 1):
        assert match(FAULTS, [step]) == ([None, None], [step])


def test_a_second_event_in_a_fault_is_neither_hit_nor_false_alarm():
    assert match(FAULTS, [101, 103, 150, 200]) == ([101, 200], [150])


def test_a_decision_is_the_step_at_which_the_event_opens():
    values = np.full(150, 3.0)
    values[120:130] = 9.0
    assert decisions(make_detector("llm_foundry", "x"), values) == [125]
    assert decisions(make_detector("loss_ratio", "x"), values) == [121]


def test_cases_are_the_same_at_every_call_and_the_splits_are_apart():
    few = {"synthetic": 12, "hard": 6, "draws": 2}
    once, again, other = list(cases("tune", **few)), list(cases("tune", **few)), list(cases("score", **few))
    for one, two in zip(once, again, strict=True):
        np.testing.assert_array_equal(one.values, two.values)
        assert one.faults == two.faults
    assert not {case.values[:15].tobytes() for case in once} & {case.values[:15].tobytes() for case in other}


@pytest.mark.parametrize("split", ["tune", "score"])
def test_faults_lie_in_their_curve_apart_and_in_order(split):
    for case in cases(split, synthetic=30, hard=0, draws=6):
        assert all(1 <= fault.start <= fault.end <= len(case.values) for fault in case.faults)
        assert all(a.end + AFTER < b.start for a, b in pairwise(case.faults))
        assert np.isfinite(case.values).mean() > 0.9


def test_the_measure_counts():
    outcome = measure(("loss_ratio",), list(cases("tune", synthetic=6, hard=0, draws=1)))
    assert len(outcome.faults) > 10
    assert outcome.faults[outcome.faults["hit"]]["delay"].ge(0).all()
    assert outcome.faults[~outcome.faults["hit"]]["delay"].isna().all()
    assert outcome.values == 6 * 800 + 7 * 500

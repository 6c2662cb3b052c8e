"""The measure of the benchmark of detectors, and that its splits are apart."""

from itertools import pairwise

import numpy as np
import pytest

from benchmarks.detectors.cases import Case, Fault
from benchmarks.detectors.measure import AFTER, decide, decisions, match, measure, outcomes, quiet_values
from benchmarks.detectors.pulses import cases
from stability.detect.catalogue import make_detector
from stability.detect.events import Rise

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
    for steps in (np.arange(1, 151), 20_000 + 50 * np.arange(1, 151)):
        assert decisions(make_detector("llm_foundry", "x"), steps, values) == [125]
        assert decisions(make_detector("loss_ratio", "x"), steps, values) == [121]


@pytest.mark.parametrize("name", ["median_mad", "level", "olmo_core", "llm_foundry", "loss_ratio", "cusum"])
def test_decisions_are_those_of_a_detector_that_takes_the_values_one_by_one(name):
    found = []
    for case in cases("tune", synthetic=6, hard=6, draws=0):
        detector, before, one_by_one = make_detector(name, case.signal), None, []
        for step, value in zip(case.steps.tolist(), case.values.tolist(), strict=True):
            events = detector.update({"step": step, case.signal: value})
            if (detector.open is not None and detector.open is not before) or any(isinstance(e, Rise) for e in events):
                one_by_one.append(step)
            before = detector.open
        assert decisions(make_detector(name, case.signal), case.steps, case.values) == one_by_one
        found += one_by_one
    assert found or name == "llm_foundry"


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
    few = list(cases("tune", synthetic=6, hard=0, draws=1))
    outcome = measure(few, [decide("loss_ratio", few)])
    assert len(outcome.faults) > 10
    assert outcome.faults[outcome.faults["hit"]]["delay"].ge(0).all()
    assert outcome.faults[~outcome.faults["hit"]]["delay"].isna().all()
    assert outcome.values == 6 * 800 + 7 * 500


def test_detectors_measured_together_decide_when_any_of_them_does():
    few = list(cases("tune", synthetic=6, hard=0, draws=0))
    found = outcomes(few, {"both": ("loss_ratio", "cusum"), "one": ("loss_ratio",), "other": ("cusum",)})
    hit = {name: outcome.faults["hit"].to_numpy() for name, outcome in found.items()}
    np.testing.assert_array_equal(hit["both"], hit["one"] | hit["other"])
    assert 0 < hit["one"].sum() < hit["both"].sum()
    assert len(found["both"].alarms) == len(found["one"].alarms) + len(found["other"].alarms)


def test_a_rule_for_losses_decides_nothing_on_a_norm():
    values = np.r_[np.ones(2_000), np.full(500, 9.0)] + 0.01 * np.sin(np.arange(2_500))
    loss, norm = (Case("made", signal, values, []) for signal in ("loss/nll", "grad_norm/total"))
    assert [len(places) > 0 for places in decide("level", [loss, norm]).places] == [True, False]


def test_values_outside_of_faults_are_counted():
    case = Case("made", "loss/nll", np.zeros(20), [Fault("pulse", 3, 5, 6.0), Fault("late rise", 15, 20, 6.0)])
    assert quiet_values(case) == 20 - (3 + AFTER) - 6

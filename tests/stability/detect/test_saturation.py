"""Saturation: which runs have it, from when on, and that each is told once."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stability.detect.catalogue import detect_rows, detector_from_state, make_detector
from stability.detect.events import Saturated
from stability.detect.saturation import LIMITS

LOGITS, ENTROPY = "attention/logit_max", "attention/entropy"


def probed(signal, values, layers=(), every=20):
    """Rows of a run in which a metric is measured every so many steps; ``layers``: the values by layer."""
    rows = [{"step": step, "loss/nll": 5.0} for step in range(1, every * len(values) + 1)]
    group, name = signal.split("/")
    for index, value in enumerate(values):
        row = rows[every * (index + 1) - 1]
        row[signal] = float(value)
        row |= {f"{group}/layer_{i:02d}/{name}": float(layer[index]) for i, layer in enumerate(layers)}
    return rows


def saturations(signal, rows):
    return detect_rows(make_detector("saturated", signal), rows)


@pytest.mark.parametrize(
    ("signal", "values"),
    [
        (LOGITS, [255, 854, 1091, 1365, 1199, 1674, 1835]),  # linear head, 3e-2
        (LOGITS, [604, 969, 913, 847, 740, 640, 549]),  # configs/pydoc_stress.yaml
        (ENTROPY, [0.14, 0.04, 0.04, 0.04, 0.04, 0.03, 0.03]),
        (ENTROPY, [0.12, 0.09, 0.09, 0.11, 0.12, 0.13, 0.13]),
    ],
)
def test_real_runs_at_too_high_a_rate_are_seen_within_some_probes(signal, values):
    """Values of real runs, measured every 20 steps; of the entropy, those of the worst layer."""
    (event,) = saturations(signal, probed(signal, values))
    assert (event.kind, event.detector, event.signal) == ("saturated", "saturated", signal)
    assert event.start_step <= 40
    assert event.opened_step == event.start_step + 20
    assert event.height == values[event.opened_step // 20 - 1]


@pytest.mark.parametrize(
    ("signal", "values"),
    [
        (LOGITS, [0.4, 6.8, 16.6, 19.3, 28.9, 36.8, 28.2, 23.8, 18.2]),  # the demo, linear head
        (LOGITS, [0.4, 40, 97, 115, 110, 115, 113]),  # the largest seen in a run that was not behind
        (ENTROPY, [3.58, 1.15, 1.56, 0.81, 1.27, 1.28, 1.25, 1.34]),  # the worst layer of a llama at 3e-3
        ("logit/max", np.linspace(1.9, 14.6, 100)),
        ("logit/max", np.linspace(-62, -94, 100)),  # the demo, metric head
        ("logit/std", np.linspace(0.23, 2.3, 100)),
        ("logit/std", 16 * np.linspace(0.23, 2.3, 100)),  # a metric head of g = 8
    ],
)
def test_healthy_runs_are_silent(signal, values):
    assert saturations(signal, probed(signal, values, every=1 if signal.startswith("logit") else 20)) == []


def test_a_run_that_falls_behind_is_seen_later():
    """A llama of 1.3 million parameters at 1e-2, which keeps learning: NLL 5.94 after 300 steps, at 3e-3 5.56."""
    values = [19, 77, 133, 175, 230, 241, 242, 250, 243, 250, 263, 256, 242, 247, 243]
    (event,) = saturations(LOGITS, probed(LOGITS, values))
    assert (event.start_step, event.opened_step, event.height) == (100, 120, 241)


@pytest.mark.parametrize("signal", LIMITS)
def test_a_saturation_is_one_event_until_it_has_gone_back_well_below(signal):
    limit = LIMITS[signal]
    n = limit.in_a_row
    good, bad = limit.value * 100.0**-limit.sign, limit.value * 1.5**limit.sign
    between = (limit.value + limit.over) / 2  # no longer beyond the limit, and not well below
    values = [good] * n + [bad] * (n - 1) + [good] * n + [bad] * 2 * n + [between] * 2 * n + [bad] * n
    first = 20 * (3 * n)  # the value before is the last good one
    found = saturations(signal, probed(signal, values))
    assert [(e.start_step, e.opened_step) for e in found] == [(first, first + 20 * (n - 1))]
    again = saturations(signal, probed(signal, values + [good] * n + [bad] * n))
    second = 20 * (len(values) + n + 1)
    assert [e.start_step for e in again] == [first, second]
    short = saturations(signal, probed(signal, values + [good] * (n - 1) + [bad] * n))
    assert len(short) == 1


def test_the_layers_that_are_saturated_are_named_and_the_worst_counts():
    """Healthy layers do not hide one that is saturated: the entropy is a mean over layers."""
    layers = [[0.14, 0.04, 0.04], [0.8, 1.1, 1.2], [0.9, 0.3, 0.15], [1.9, 0.3, 0.3]]
    rows = probed(ENTROPY, np.mean(layers, axis=0), layers)
    (event,) = saturations(ENTROPY, rows)
    assert (event.signal, event.start_step, event.opened_step) == ("attention/layer_00/entropy", 20, 40)
    assert event.height == 0.04
    assert event.layers == ["layer_00"]
    assert "layer_00" in str(event) and "0.04" in str(event)
    assert saturations(LOGITS, rows) == []


def test_a_head_that_starts_with_a_large_spread_is_held_against_its_start():
    limit = LIMITS["logit/std"]
    start = 2 * limit.value / limit.of_start
    values = [start] + [1.9 * limit.value] * 50
    assert saturations("logit/std", probed("logit/std", values, every=1)) == []
    (event,) = saturations("logit/std", probed("logit/std", [*values, *[2.1 * limit.value] * 20], every=1))
    assert event.start_step == 52
    assert event.limit == pytest.approx(2 * limit.value)


def test_other_signals_have_no_events():
    assert saturations("loss/nll", probed("loss/nll", [1e9] * 50)) == []


def test_what_is_not_finite_is_passed_over():
    (event,) = saturations(LOGITS, probed(LOGITS, [20, 900, math.inf, math.nan, 900, 20, 900]))
    assert (event.start_step, event.opened_step) == (40, 100)


@pytest.mark.parametrize("signal", LIMITS)
@settings(max_examples=10)
@given(cut=st.integers(0, 300), seed=st.integers(0, 9))
def test_it_goes_on_from_its_state_and_looks_at_nothing_later(signal, cut, seed):
    random = np.random.default_rng(seed)
    scale = np.repeat(np.exp(random.uniform(-2, 2, 15)), 20) * LIMITS[signal].value
    layers = scale * np.exp(0.1 * random.standard_normal((2, 300)))
    rows = probed(signal, scale, layers if signal.startswith("attention") else (), every=1)
    one = make_detector("saturated", signal)
    found = [event for row in rows[:cut] for event in one.update(row)]
    other = detector_from_state(json.loads(json.dumps(one.state(), allow_nan=False)))
    assert other.state() == one.state()
    after = [event for row in rows[cut:] for event in other.update(row)]
    assert found + after + other.finish() == saturations(signal, rows)


def test_its_event_has_these_fields():
    """What readers of events.jsonl rely on."""
    event = Saturated("saturated", LOGITS, 40, 60, 1091.0, 300.0, ["layer_00"])
    assert event.end_step == 60
    assert event.event() == {
        "detector": "saturated", "signal": LOGITS, "start_step": 40, "opened_step": 60, "height": 1091.0,
        "limit": 300.0, "layers": ["layer_00"],
    }  # fmt: skip

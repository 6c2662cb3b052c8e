"""Precursors: those that were planted, with their lead, and hardly any others."""

import math

import numpy as np
import pytest

from stability.detect.events import Spike
from stability.detect.precursors import LEAD, precursors

START = 300
STEPS = list(range(1, 341))
SPIKE = Spike("median_mad", "loss/nll", START, START, START, START + 5, 1.0, 10.0, True)


def noise(seed, freedom=5):
    """340 values around 5 with heavy tails."""
    return 5 + 0.1 * np.random.default_rng(seed).standard_t(freedom, len(STEPS))


@pytest.mark.parametrize("name", ["grad_norm/total", "logit/max", "entropy/p"])
@pytest.mark.parametrize("lead", [0, 1, 3, 20, 80])
@pytest.mark.parametrize("side", [1, -1])
def test_a_signal_that_left_its_range_is_found_with_its_lead(name, lead, side):
    values = noise(lead)
    values[START - 1 - lead :] += 2.5 * side
    (found,) = precursors(SPIKE, STEPS, {name: values.tolist()})
    assert (found.signal, found.first_step, found.lead_steps) == (name, START - lead, lead)
    assert np.sign(found.sigmas) == side
    assert abs(found.sigmas) > 5


def test_the_longest_lead_comes_first():
    early, late = noise(1), noise(2)
    early[START - 11 :] += 2
    late[START - 4 :] += 2
    found = precursors(SPIKE, STEPS, {"logit/std": late.tolist(), "logit/max": early.tolist(), "x": noise(3).tolist()})
    assert [(p.signal, p.lead_steps) for p in found] == [("logit/max", 10), ("logit/std", 3)]


def test_an_excursion_that_was_over_is_none():
    values = noise(0)
    values[START - 30 : START - 20] += 2
    assert precursors(SPIKE, STEPS, {"logit/max": values.tolist()}) == []


def test_a_level_that_is_older_than_the_lead_is_none():
    values = noise(0)
    values[START - LEAD - 10 :] += 2
    assert precursors(SPIKE, STEPS, {"logit/max": values.tolist()}) == []


def test_nothing_after_the_first_step_of_the_spike_matters():
    values = noise(0)
    values[START:] += 50
    assert precursors(SPIKE, STEPS, {"logit/max": values.tolist()}) == []


def test_what_is_no_measurement_of_the_model_is_passed_over():
    values = noise(0)
    values[START - 5 :] += 5
    names = (
        "loss/nll",
        "loss/objective",
        "tokens",
        "step",
        "validation/nll",
        "memory/peak_bytes",
        "throughput/x",
    )
    assert precursors(SPIKE, STEPS, {name: values.tolist() for name in names}) == []


def test_an_update_follows_the_learning_rate():
    rate = np.minimum(np.arange(1, 341), 280) / 280
    updates = rate * np.exp(0.02 * np.random.default_rng(0).standard_normal(340))
    assert precursors(SPIKE, STEPS, {"update_rms/norm": updates.tolist(), "lr": rate.tolist()}) == []


def test_gaps_and_signals_without_noise_are_borne():
    sparse, constant = noise(0), np.zeros(340)
    sparse[np.arange(340) % 10 > 0] = math.nan
    constant[START - 3 :] = 1
    assert precursors(SPIKE, STEPS, {"logit/max": sparse.tolist(), "tfsd/weight_below_1pct": constant.tolist()}) == []


def test_a_jump_from_all_but_nothing_is_told_with_bounded_sigmas():
    """As the entropy of a target that is one-hot."""
    values = 1e-26 * noise(0)
    values[START - 3 :] = 0.5
    (found,) = precursors(SPIKE, STEPS, {"tfsd/target_entropy": values.tolist()})
    assert (found.lead_steps, found.sigmas) == (2, 1000.0)


def test_a_signal_that_drifts_out_of_its_range_is_none():
    """Update sizes and norms follow smooth trends that bend: here one that halves in 80 steps."""
    smooth = 0.002 * np.exp(-np.maximum(0, np.array(STEPS) - 200) / 115)
    assert precursors(SPIKE, STEPS, {"update_rms/norm": smooth.tolist(), "embedding_norm/max": smooth.tolist()}) == []


def test_a_jump_of_the_learning_rate_is_one_and_a_schedule_is_none():
    schedule = np.array([0.003 * min(1, step / 50) * (1 + math.cos(math.pi * step / 340)) / 2 for step in STEPS])
    assert precursors(SPIKE, STEPS, {"lr": schedule.tolist()}) == []
    schedule[START - 2 : START] *= 100
    (found,) = precursors(SPIKE, STEPS, {"lr": schedule.tolist()})
    assert (found.signal, found.lead_steps) == ("lr", 1)
    schedule[START - 3] = math.nan  # a row without a rate does not hide it
    (again,) = precursors(SPIKE, STEPS, {"lr": schedule.tolist()})
    assert (again.signal, again.lead_steps) == ("lr", 1)


def test_a_warm_up_that_is_logged_at_every_tenth_step_is_no_jump():
    steps = [1, *range(10, 201, 10)]
    spike = Spike("median_mad", "loss/nll", 100, 100, 100, 110, 1.0, 10.0, True)
    assert precursors(spike, steps, {"lr": [1e-6 * step for step in steps]}) == []


def test_noise_has_hardly_any():
    """Sixty signals of noise with heavy tails, ten spikes: at most one of them has any."""
    with_some = sum(
        bool(precursors(SPIKE, STEPS, {f"x{i}": noise([spike, i]).tolist() for i in range(60)})) for spike in range(10)
    )
    assert with_some <= 1

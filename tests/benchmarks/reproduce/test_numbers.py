import math

import pandas as pd
import pytest

from benchmarks.reproduce.numbers import above, alarms_of, below, over_seeds, spikes_of, validation_nll
from record.finished import Run


def made(validation=(), events=(), vocab=1024, steps=4):
    metrics = pd.DataFrame(index=pd.RangeIndex(1, steps + 1, name="step"))
    metrics["validation/nll"] = [math.nan] * (steps - len(validation)) + list(validation)
    return Run(None, "made", {"data": {"vocab_size": vocab}, "train": {"steps": 4}}, metrics, {}, list(events), {})


def test_a_loss_counts_for_no_more_than_guessing_blindly():
    assert validation_nll(made([5.0])) == 5.0
    assert validation_nll(made([7.5])) == pytest.approx(math.log(1024))
    assert validation_nll(made([5.0], steps=3)) == pytest.approx(math.log(1024))  # it ended before its last step


def test_an_effect_needs_its_whole_interval_and_its_size():
    assert above(over_seeds([0.3, 0.31, 0.32])) and above(over_seeds([0.3, 0.31, 0.32]), 0.2)
    assert not above(over_seeds([0.3, 0.31, 0.32]), 0.5)
    assert not above(over_seeds([0.1, 0.9, 0.2]))  # the mean 0.4, but an interval of -0.68 to 1.48
    assert below(over_seeds([-0.3, -0.31, -0.32])) and not below(over_seeds([-0.3, -0.31, 0.4]))


def test_one_seed_shows_nothing_and_equal_seeds_do():
    assert not above(over_seeds([5.0])) and not below(over_seeds([-5.0]))
    assert above(over_seeds([1.0, 1.0, 1.0])) and not above(over_seeds([0.0, 0.0, 0.0]))


def test_spikes_and_alarms_are_told_apart():
    events = [
        {"event": "spike", "signal": "loss/nll", "start_step": 3},
        {"event": "spike", "signal": "loss/nll", "start_step": 30},
        {"event": "stall", "signal": "loss/nll"},
        {"event": "saturated", "signal": "attention/logit_max"},
        {"event": "saturated", "signal": "attention/entropy"},
    ]
    run = made([5.0], events)
    assert spikes_of(run, "loss/nll", first=21) == [30] and spikes_of(run, "grad_norm/total") == []
    assert alarms_of(run) == ["saturated", "stall"]

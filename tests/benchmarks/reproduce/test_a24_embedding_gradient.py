from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from benchmarks.reproduce.a24_embedding_gradient import Arm, arm, judged
from benchmarks.reproduce.base import Verdict
from record.finished import Run

PLAIN = Arm(early=0.8, late=0.3, spikes=3, validation=5.0)
SHRUNK = replace(PLAIN, spikes=0)


def made(plain=PLAIN, shrunk=SHRUNK, wobble=0.01):
    return judged(
        [
            {
                "untied": replace(
                    plain, early=plain.early + wobble * seed, spikes=plain.spikes + (seed if plain.spikes else 0)
                ),
                "untied_shrunk": replace(shrunk, validation=shrunk.validation + wobble * seed),
                "tied": PLAIN,
                "tied_shrunk": SHRUNK,
            }
            for seed in range(3)
        ]
    )


def test_a_dominant_gradient_whose_shrinking_removes_spikes_is_reproduced():
    assert made().verdict is Verdict.REPRODUCED


def test_a_lower_nll_helps_too():
    assert made(plain=replace(PLAIN, spikes=0), shrunk=replace(SHRUNK, validation=4.8)).verdict is Verdict.REPRODUCED


def test_shrinking_that_does_not_help_is_not_reproduced():
    assert made(shrunk=replace(PLAIN, spikes=5)).verdict is Verdict.NOT_REPRODUCED


@pytest.mark.parametrize("plain", [replace(PLAIN, early=0.4), replace(PLAIN, late=0.9), replace(PLAIN, spikes=0)])
def test_a_small_or_lasting_share_or_no_spikes_are_not_at_this_scale(plain):
    assert made(plain=plain, shrunk=replace(plain, spikes=0)).verdict is Verdict.NOT_AT_THIS_SCALE


def test_the_share_is_of_the_squared_norm_early_and_late():
    steps = pd.RangeIndex(1, 51, name="step")
    own = np.where(steps <= 20, 3.0, 1.0)
    metrics = pd.DataFrame({"grad_norm/embedding": own, "grad_norm/total": 5.0, "validation/nll": 4.0}, index=steps)
    events = [{"event": "spike", "signal": "grad_norm/total", "start_step": step} for step in (5, 30)]
    config = {"data": {"vocab_size": 1024}, "train": {"steps": 50}, "optimizer": {"warmup_steps": 20}}
    run = Run(None, "made", config, metrics, {}, events, {})
    assert arm(run) == Arm(early=pytest.approx(0.36), late=pytest.approx(0.04), spikes=1, validation=4.0)

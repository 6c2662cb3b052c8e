import math
from dataclasses import replace

import pandas as pd
import pytest

from benchmarks.reproduce.a14_entropy_collapse import Arm, arm, first_rise, judged
from benchmarks.reproduce.base import Verdict
from record.finished import Run

PLAIN = Arm(entropy=0.01, collapsed=30, diverged=61, validation=6.9)
HELD = Arm(entropy=0.7, collapsed=None, diverged=None, validation=5.5)


def made(plain=PLAIN, held=HELD):
    return judged(
        [
            {"plain": plain, "sigma_reparam": replace(held, validation=held.validation + 0.01 * seed)}
            for seed in range(3)
        ]
    )


def test_collapse_then_divergence_that_sigma_reparam_prevents_is_reproduced():
    assert made().verdict is Verdict.REPRODUCED


@pytest.mark.parametrize(
    "change",
    [
        {"plain": replace(PLAIN, collapsed=90)},  # after the divergence
        {"plain": replace(PLAIN, collapsed=None)},
        {"held": replace(HELD, collapsed=40)},
        {"held": replace(HELD, validation=6.9)},
    ],
)
def test_another_order_or_no_help_is_not_reproduced(change):
    assert made(**change).verdict is Verdict.NOT_REPRODUCED


def test_a_run_that_does_not_diverge_is_not_at_this_scale():
    assert made(plain=replace(PLAIN, diverged=None)).verdict is Verdict.NOT_AT_THIS_SCALE


def test_a_rise_is_above_any_earlier_span():
    assert first_rise([6, 6, 5, 5, 5.4, 5.4, 5.5, 5.5], span=2) == 7
    assert first_rise([6, 6, 5, 5, 5.4, 5.4], span=2) is None
    assert first_rise([6, 6, math.nan, math.nan], span=2) == 3


def test_a_run_is_judged_by_its_worst_layer():
    uniform = math.lgamma(65) / 64
    metrics = pd.DataFrame(
        {
            "loss/nll": 5.0,
            "validation/nll": 5.0,
            "attention/layer_00/entropy": [0.9 * uniform, 0.8 * uniform] * 20,
            "attention/layer_01/entropy": [0.5 * uniform, 0.05 * uniform] * 20,
        },
        index=pd.RangeIndex(1, 41, name="step"),
    )
    config = {"data": {"vocab_size": 1024, "sequence_length": 64}, "train": {"steps": 40}}
    whole = Run(None, "made", config, metrics, {}, [], {})
    assert arm(whole) == Arm(entropy=pytest.approx(0.05), collapsed=2, diverged=None, validation=5.0)
    cut = replace(whole, metrics=metrics[:30])
    assert arm(cut).diverged == 30

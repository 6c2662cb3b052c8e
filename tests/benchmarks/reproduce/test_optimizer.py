"""Findings about Adam: the hand cases, and each rule on numbers that must and must not reproduce."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from analysis.step.curvature import threshold
from benchmarks.reproduce import a10_edge, a20_safe_step
from benchmarks.reproduce.a6_epsilon import EPS, Epsilon, pairs
from benchmarks.reproduce.a9_adam_spike import ARMS, AdamSpike, descend, rise
from benchmarks.reproduce.a10_edge import Edge
from benchmarks.reproduce.a20_safe_step import CLIPPED, CONTROLLED, MATCHED, PLAIN, RATES, SafeStep
from benchmarks.reproduce.base import Seed, Verdict
from common.files import strict


def seeds(*measured) -> list[Seed]:
    return [Seed(number, {}, json.loads(json.dumps(strict(each)))) for number, each in enumerate(measured)]


# ----------------------------------------------------------------------------------------------------------- A9: a parabola


@pytest.mark.parametrize(("beta1", "limit"), [(0.0, 2.0), (0.5, 6.0), (0.9, 38.0), (0.95, 78.0)])
def test_the_threshold_is_where_adam_with_a_constant_denominator_begins_to_diverge(beta1, limit):
    assert threshold(1.0, beta1) == pytest.approx(limit)

    def grows(curvature: float) -> bool:
        x, m = 1.0, 0.0
        for _ in range(20_000):
            m = beta1 * m + (1 - beta1) * curvature * x
            x -= m
            if abs(x) > 1e6:
                return True
        return False

    assert not grows(0.99 * limit)
    assert grows(1.01 * limit)


@pytest.mark.parametrize(("beta2", "steps", "crossing", "later"), [(0.95, 2000, 377, 12), (0.99, 5000, 1578, 85)])
def test_a_parabola_crosses_the_threshold_at_a_known_step_and_spikes_after_it(beta2, steps, crossing, later):
    found = descend(1e-2, beta2, steps)
    assert (found.crossing, found.peak_after) == (crossing, later)
    assert found.decay == pytest.approx(beta2, rel=1e-6)
    assert found.peak > 1e6 * found.at_crossing
    assert found.risen_before == 1


def test_with_the_longest_memory_the_loss_is_0_before_it_spikes():
    found = descend(*ARMS[2])
    assert (found.crossing, found.peak_after, found.at_crossing) == (13254, 829, 0.0)
    assert found.peak > 1e-6


def test_the_rise_of_losses_is_that_of_the_highest_of_each_window():
    falling = [2.0 ** (-i) for i in range(300)]
    assert rise(falling) == 1
    assert rise([*[1.0] * 100, *[0.0, 0.01] * 50, *[0.5] * 100]) == pytest.approx(50)
    assert rise([*[0.0] * 100, 1.0]) == math.inf


def judged(*arms):
    return AdamSpike().judge(seeds([asdict(arm) for arm in arms])).verdict


def test_a_parabola_is_reproduced_only_if_each_crossing_and_nothing_else_makes_a_spike():
    good = descend(1e-2, 0.95, 2000)
    calm = descend(1e-2, 0.95, 300)
    assert calm.crossing is None
    assert judged(good, calm) == Verdict.REPRODUCED
    assert judged(calm) == Verdict.NOT_REPRODUCED  # nothing crossed
    assert judged(good, replace(calm, risen_before=1e4)) == Verdict.NOT_REPRODUCED
    assert judged(replace(good, peak=good.at_crossing)) == Verdict.NOT_REPRODUCED
    assert judged(replace(good, decay=0.97)) == Verdict.NOT_REPRODUCED


# ------------------------------------------------------------------------------------------------------- A10: the edge


def hovering(high: float, low: float, seed: int = 0):
    """Sharpness that reaches ``high`` times the threshold for beta1 0.9, and ``low`` times for 0.5."""
    steps = list(range(1, a10_edge.STEPS + 1))
    random = np.random.default_rng(seed)
    return {
        f"{beta1:g}": {
            "step": steps,
            "loss/nll": [1.0] * len(steps),
            "sharpness": [
                ratio * threshold(a10_edge.RATE, beta1) * float(random.uniform(0.95, 1.05))
                if step % a10_edge.EVERY == 0
                else None
                for step in steps
            ],
        }
        for beta1, ratio in ((0.9, high), (0.5, low))
    }


@pytest.mark.parametrize(
    ("high", "low", "verdict"),
    [
        (1.0, 1.1, Verdict.REPRODUCED),
        (1.0, 6.3, Verdict.NOT_REPRODUCED),  # the same sharpness for both
        (0.2, 0.3, Verdict.NOT_AT_THIS_SCALE),
        (4.0, 1.0, Verdict.NOT_REPRODUCED),
    ],
)
def test_the_sharpness_must_settle_at_the_threshold_of_each_beta1(high, low, verdict):
    outcome = Edge().judge(seeds(*(hovering(high, low, seed) for seed in range(3))))
    assert outcome.verdict == verdict
    assert [row["sharpness over its threshold, mean over seeds"] for row in outcome.table] == [
        "beta1 0.9 (38 / lr)",
        "beta1 0.5 (6 / lr)",
    ]


def test_a_measurement_that_did_not_converge_is_left_out():
    rows = hovering(1.0, 1.0)["0.9"]
    rows["sharpness"][a10_edge.STEPS - 1] = None
    assert a10_edge.settled(rows, 0.9) == pytest.approx(1.0, abs=0.05)
    assert max(a10_edge.ratios(rows, 0.9)) == a10_edge.STEPS - a10_edge.EVERY


# ----------------------------------------------------------------------------------------------------- A20: cut steps


def accuracies(plain, cut, seed):
    random = np.random.default_rng(seed)
    names = (PLAIN, CLIPPED, CONTROLLED, MATCHED)
    values = {PLAIN: plain, CLIPPED: plain, CONTROLLED: cut, MATCHED: plain}
    return {
        f"{rate:g} {name}": {
            "before": 0.5,
            "one step later": 0.4,
            "largest r": 3.0,
            "accuracy": values[name][i] + random.normal(0, 0.01),
            "mean scale": 1.0,
        }
        for i, rate in enumerate(RATES)
        for name in names
    }


@pytest.mark.parametrize(
    ("plain", "cut", "verdict"),
    [
        ((0.97, 0.5, 0.1), (0.97, 0.97, 0.97), Verdict.REPRODUCED),
        ((0.97, 0.96, 0.95), (0.97, 0.97, 0.97), Verdict.NOT_REPRODUCED),  # nothing is ruined
        ((0.97, 0.5, 0.1), (0.97, 0.97, 0.5), Verdict.NOT_REPRODUCED),  # cutting does not help
        ((0.5, 0.5, 0.1), (0.97, 0.97, 0.97), Verdict.NOT_REPRODUCED),  # no order
    ],
)
def test_plain_adam_must_fail_in_order_and_cut_steps_nowhere(plain, cut, verdict):
    outcome = SafeStep().judge(seeds(*(accuracies(plain, cut, seed) for seed in range(4))))
    assert outcome.verdict == verdict
    assert len(outcome.table) == 12


def test_the_digits_are_split_by_the_seed_and_cut_steps_keep_what_was_learnt(monkeypatch):
    pytest.importorskip("sklearn")
    x_NF, y_N, test_NF, _ = a20_safe_step.digits(0)
    assert (x_NF.shape, test_NF.shape) == ((1437, 64), (360, 64))
    assert float(x_NF.max()) == 1.0
    assert a20_safe_step.digits(1)[1].tolist() != y_N.tolist()
    monkeypatch.setattr(a20_safe_step, "STEPS", 60)
    plain, cut = (a20_safe_step.train(0, 1e-2, arm) for arm in (PLAIN, CONTROLLED))
    assert plain["before"] == cut["before"] > 0.9
    assert plain["accuracy"] < 0.5
    assert cut["accuracy"] > 0.9
    assert cut["largest r"] > 10 and cut["mean scale"] < 1


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    from common.errors import InputError

    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"pip install -r requirements-reproduce.txt"):
        a20_safe_step.digits(0)


# ----------------------------------------------------------------------------------------------------------- A6: epsilon


def shrinking(*, swallowed: bool, worse: bool, smallest: float = 1e-9):
    """Gradients that shrink from an RMS of 1e-3; Adam's own formula for the update, or one that knows no epsilon."""
    gradient = np.geomspace(1e-3, smallest, 120)
    return {
        f"{eps:g}": {
            "loss/nll": [0.1 if worse and eps == EPS[0] else 0.01] * 120,
            "lr": [3e-3] * 120,
            "elements/layer_00": [None, 400.0] * 60,
            "grad_norm/layer_00": (20 * gradient).tolist(),
            "update_rms/layer_00": (3e-3 * (gradient / (gradient + eps) if swallowed else gradient**0)).tolist(),
        }
        for eps in EPS
    }


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ({"swallowed": True, "worse": True}, Verdict.REPRODUCED),
        ({"swallowed": False, "worse": True}, Verdict.NOT_REPRODUCED),
        ({"swallowed": True, "worse": False}, Verdict.NOT_REPRODUCED),
        ({"swallowed": True, "worse": True, "smallest": 1e-5}, Verdict.REPRODUCED),  # 1e-8 is far
    ],
)
def test_the_update_must_shrink_near_epsilon_and_the_loss_stay_behind(given, verdict):
    assert Epsilon().judge(seeds(*[shrinking(**given)] * 3)).verdict == verdict


def test_the_gradient_over_epsilon_is_a_root_mean_square_over_the_groups_elements():
    near, size = pairs(shrinking(swallowed=True, worse=True)["1e-08"], 1e-8)
    assert len(near) == 120 - 20
    assert near[0] == pytest.approx(np.geomspace(1e-3, 1e-9, 120)[20] / 1e-8)
    assert size[-1] == pytest.approx(1 / 11)


def test_gradients_far_from_every_epsilon_say_nothing():
    arms = shrinking(swallowed=True, worse=True)
    for rows in arms.values():
        rows["grad_norm/layer_00"] = [1.0] * 120  # an RMS of 0.05
    assert Epsilon().judge(seeds(arms, arms)).verdict == Verdict.NOT_AT_THIS_SCALE

"""Stalls: a loss that stands still while logits grow, or while attention is saturated."""

import numpy as np
import pytest

from stability.detect.catalogue import detect_rows, make_detector
from stability.detect.stall import SATURATED


def rows(loss, logits, name="attention/logit_max", every=1):
    """Rows with a loss at every step and a logit at every so many."""
    return [
        {"step": i + 1, "loss/nll": float(a)} | ({name: float(b)} if i % every == 0 else {})
        for i, (a, b) in enumerate(zip(loss, logits, strict=True))
    ]


def stalls(run):
    return detect_rows(make_detector("stall", "loss/nll"), run)


FLAT = np.full(400, 6.7) + 0.05 * np.random.default_rng(0).standard_normal(400)
FALLING = 3 + 5 / np.sqrt(1 + np.arange(400) / 20) + 0.05 * np.random.default_rng(0).standard_normal(400)
GROWING = np.exp(np.linspace(0, 4, 400))


@pytest.mark.parametrize(("name", "every"), [("attention/logit_max", 20), ("logit/max", 1), ("logit/std", 1)])
def test_logits_that_grow_while_the_loss_is_flat_are_one_stall(name, every):
    (stall,) = stalls(rows(FLAT, GROWING, name, every))
    assert (stall.kind, stall.logits) == ("stall", name)
    assert stall.growth >= 1.5
    assert stall.size >= 1.5 * GROWING[0]
    assert abs(stall.height) < 0.07
    assert stall.end_step - stall.start_step == 99


def test_healthy_logits_are_no_stall():
    assert stalls(rows(FALLING, GROWING)) == []  # they grow, the loss falls
    assert stalls(rows(FLAT, np.full(400, 20.0))) == []  # the loss is flat, they are too
    assert stalls(rows(FLAT, -GROWING)) == []  # the logits of a metric head are below 0: no ratio
    early = np.concatenate([np.linspace(0.1, 5, 40), np.full(360, 5.0)])
    plateau = np.concatenate([np.linspace(8, 6.7, 40), FLAT[40:]])
    assert stalls(rows(plateau, early)) == []  # they grew while it fell, and both are at rest since
    assert stalls([{"step": i, "loss/nll": v} for i, v in enumerate(FLAT)]) == []


PUSHED_TOO_FAR = [604.0, 969.1, 913.0, 846.8, 739.7, 639.8, 548.6]
"""The largest attention logit at steps 20, 40, ..., 140 of configs/pydoc_stress.yaml, whose loss falls by 2% in 100 steps."""
STUCK = 6.6 + 1.5 * np.exp(-np.arange(150) / 8) + 0.3 * np.exp(-np.arange(150) / 60)
"""Its loss without noise, about."""


def pushed_too_far(factor=1.0, loss=STUCK):
    logits = np.repeat(PUSHED_TOO_FAR, 20)
    run = [{"step": step, "loss/nll": value} for step, value in enumerate(loss.tolist(), start=1)]
    for step in range(20, 141, 20):
        run[step - 1]["attention/logit_max"] = factor * float(logits[step - 20])
    return run


def test_a_loss_that_stands_still_after_its_logits_have_grown_is_a_stall():
    """They grow in the first steps and shrink while the loss stands still."""
    (stall,) = stalls(pushed_too_far())
    assert stall.logits == "attention/logit_max"
    assert stall.growth < 1.5
    assert stall.size in PUSHED_TOO_FAR
    assert 100 <= stall.end_step <= 130
    assert -0.025 * 6.9 <= stall.height < 0


def test_without_saturated_attention_the_same_loss_is_a_plateau():
    assert stalls(pushed_too_far(0.99 * SATURATED / max(PUSHED_TOO_FAR))) == []
    assert stalls([{k: v for k, v in row.items() if k in ("step", "loss/nll")} for row in pushed_too_far()]) == []


def test_with_saturated_attention_a_loss_that_falls_is_none():
    falling = 3 + 5 / np.sqrt(1 + np.arange(150) / 20)
    assert stalls(pushed_too_far(loss=falling)) == []


def test_one_measured_value_shows_no_saturation():
    run = pushed_too_far()
    for row in run:
        if row["step"] != 120:
            row.pop("attention/logit_max", None)
    assert stalls(run) == []


def test_a_healthy_plateau_late_in_a_run_is_none():
    """The loss falls by 0.02% in 100 steps, while attention logits are at the largest that healthy runs were seen to have."""
    random = np.random.default_rng(0)
    steps = np.arange(1, 5001)
    loss = 2.5 + 3 / np.sqrt(steps) + 0.05 * random.standard_normal(5000)
    logits = np.minimum(115.0, 0.5 * steps) * np.exp(0.1 * random.standard_normal(5000))
    assert stalls(rows(loss, logits, "attention/logit_max", every=20)) == []

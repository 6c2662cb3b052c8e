"""What is due after a step, as a table; and as a property against the words of the configuration."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.load import load_config
from tests.conftest import ROOT
from training.due import Due, due_after

NOTHING = Due(flush=False, evaluate=False, keep=False, decide=False, stop=False)
CONFIG = load_config(
    ROOT / "configs" / "pydoc_micro.yaml",
    [
        "train.steps=100",
        "train.eval_every=20",
        "checkpoint.every=50",
        "telemetry.flush_every=7",
        "optimizer.warmup_steps=0",
    ],
)
TABLE = [
    # step, asked to stop: flush, evaluate, keep, decide, stop
    (1, False, "....."),
    (1, True, "f.k.s"),
    (7, False, "f..d."),
    (7, True, "f.kds"),
    (20, False, "fe.d."),
    (20, True, "fekds"),
    (50, False, "fekd."),
    (50, True, "fekds"),
    (51, False, "....."),
    (99, True, "f.k.s"),
    (100, False, "fekd."),
    (100, True, "fekd."),  # a run that has come to its end is not stopped
]


@pytest.mark.parametrize(("step", "asked", "expected"), TABLE)
def test_what_is_due(step, asked, expected):
    due = due_after(step, CONFIG, stop_requested=asked)
    flags = zip("fekds", (due.flush, due.evaluate, due.keep, due.decide, due.stop), strict=True)
    assert "".join(letter if flag else "." for letter, flag in flags) == expected


def test_nothing_is_due_at_most_steps():
    assert sum(due_after(step, CONFIG, stop_requested=False) == NOTHING for step in range(1, 101)) == 80


@given(step=st.integers(1, 100), asked=st.booleans())
def test_a_stop_adds_to_what_is_due_and_takes_nothing_away(step, asked):
    usual, stopped = due_after(step, CONFIG, stop_requested=False), due_after(step, CONFIG, stop_requested=True)
    assert (usual.evaluate, usual.decide) == (stopped.evaluate, stopped.decide), (
        "an unbroken run would have done the same"
    )
    assert (not usual.keep or stopped.keep) and (not usual.flush or stopped.flush)
    assert stopped.stop == (step < 100)

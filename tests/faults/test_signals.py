"""Signals of schedulers and of people: a checkpoint at the next step, a status that says to requeue, and nothing lost."""

from __future__ import annotations

import json

import numpy as np
import pytest

from common.command import EXIT_INTERRUPTED, EXIT_PREEMPTED
from record.checkpoints import list_checkpoints, step_of
from record.integrity import damage
from tests.conftest import events_of

from .conftest import MANY_FORMS, REWINDING, assert_as_unbroken

ENDS = {
    "SIGTERM": ("SIGTERM", None),
    "SIGUSR1": ("SIGUSR1", None),
    "SIGINT": (None, EXIT_INTERRUPTED),
}
"""How a process ends on the second of two signals: killed by it, or as Python ends on Ctrl-C."""


def middle_of(unbroken):
    """A moment at which the run is between its first and its last checkpoint."""
    return int(unbroken.moments * 0.6)


@pytest.mark.parametrize("form", MANY_FORMS, indirect=True)
@pytest.mark.parametrize("name", ENDS)
def test_a_signal_ends_the_run_at_a_step_with_a_checkpoint_and_status_75(name, form, tmp_path):
    unbroken, start = form.unbroken(), form.start
    ended = start(tmp_path / "run", at=form.middle(), signals=[name])
    assert ended.status == EXIT_PREEMPTED, ended.output
    state = json.loads((ended.directory / "status.json").read_text())
    last = list_checkpoints(ended.directory)[-1]
    assert (state["status"], state["step"]) == ("preempted", step_of(last))
    assert damage(last) is None
    assert name in state["reason"]
    (event,) = [e for e in events_of(ended.directory) if e["event"] == "preempted"]
    assert (event["step"], event["signal"]) == (step_of(last), name)
    again = start(ended.directory)
    assert again.status == 0, again.output
    assert_as_unbroken(again.directory, unbroken.directory)
    assert [e["event"] for e in events_of(again.directory) if e["event"] in ("preempted", "resume")] == [
        "preempted",
        "resume",
    ]


@pytest.mark.parametrize("form", MANY_FORMS, indirect=True)
@pytest.mark.parametrize("name", ENDS)
def test_a_second_signal_ends_the_run_at_once_and_harms_nothing(name, form, tmp_path):
    unbroken, start = form.unbroken(), form.start
    ended = start(tmp_path / "run", at=form.middle(), signals=[name, name])
    assert (ended.signal, ended.status) == ENDS[name], ended.output
    assert "Traceback" not in ended.output
    again = start(ended.directory)
    assert again.status == 0, again.output
    assert_as_unbroken(again.directory, unbroken.directory)


def test_a_run_in_the_background_of_a_script_is_not_ended_by_ctrl_c_but_by_other_signals(start, unbroken, tmp_path):
    """A shell starts it with SIGINT ignored. What else was ignored at its start is heard all the same."""
    middle, every = middle_of(unbroken), [*ENDS]
    ended = start(tmp_path / "run", at=middle, signals=["SIGINT", "SIGINT"], ignored=every)
    assert ended.status == 0, ended.output
    assert_as_unbroken(ended.directory, unbroken.directory)
    ended = start(tmp_path / "stopped", at=middle, signals=["SIGINT", "SIGTERM"], ignored=every)
    assert ended.status == EXIT_PREEMPTED, ended.output
    assert "SIGTERM" in json.loads((ended.directory / "status.json").read_text())["reason"]


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(10))
def test_signals_at_any_moment_lose_nothing(seed, start, unbroken, tmp_path):
    """Also where checkpoints are being written; a run that was about to end may end."""
    generator = np.random.default_rng(seed)
    signals = [str(name) for name in generator.choice(list(ENDS), size=generator.integers(1, 3))]
    ended = start(tmp_path / "run", at=int(generator.integers(1, unbroken.moments)), signals=signals)
    assert "Traceback" not in ended.output, ended.output
    again = start(ended.directory)
    assert again.status == 0, again.output
    assert_as_unbroken(again.directory, unbroken.directory)


# ---------------------------------------------------------------------------------------------------- and interventions

MANY = pytest.mark.faults
MARGIN = tuple(value.replace("min_sigmas: 5", "min_sigmas: 5, margin: 3") for value in REWINDING)
"""Batches before the spike are left out too, and the checkpoint of a stop may lie among them."""


def rewinds_of(run):
    """What was left out, and for what."""
    return [(e["skipped"], e["cause"]) for e in events_of(run) if e["event"] == "rewind"]


def assert_as_rewound(start, directory, unbroken, recipe, **plan):
    """Stop a run that rewinds, and go on with it."""
    ended = start(directory, *recipe, **plan)
    assert "Traceback" not in ended.output, ended.output
    again = start(directory, *recipe)
    assert again.status == 0, again.output
    assert_as_unbroken(directory, unbroken.directory)
    assert rewinds_of(directory) == rewinds_of(unbroken.directory)
    return ended


@pytest.mark.parametrize(
    "step", [45, *(pytest.param(step, marks=MANY) for step in (40, 41, 44, 46, 47, 48, 49, 50, 51))]
)
def test_a_signal_before_during_or_after_a_spike_changes_nothing_of_the_rewind(step, start, rewinding, tmp_path):
    """The spike is met at steps 45 and 46 and seen at 49; after the rewind 41 follows, which the signal of 49 stops at."""
    ended = assert_as_rewound(start, tmp_path / "run", rewinding, REWINDING, step=step, signals=["SIGTERM"])
    assert ended.status == EXIT_PREEMPTED, ended.output


@MANY
@pytest.mark.parametrize("step", [42, 44])
def test_a_rewind_leaves_out_what_it_would_have_without_the_checkpoint_of_a_stop(step, start, tmp_path):
    whole = start(tmp_path / "whole", *MARGIN)
    assert whole.status == 0, whole.output
    assert [skipped for skipped, _ in rewinds_of(whole.directory)] == [[[42, 49]]]
    ended = assert_as_rewound(start, tmp_path / "run", whole, MARGIN, step=step, signals=["SIGTERM"])
    assert ended.status == EXIT_PREEMPTED, ended.output


@MANY
def test_a_stop_before_any_checkpoint_was_due_leaves_the_way_back_to_the_start(start, tmp_path):
    recipe = (*REWINDING, "checkpoint.every=1000")
    whole = start(tmp_path / "whole", *recipe)
    assert whole.status == 0, whole.output
    (back,) = [e for e in events_of(whole.directory) if e["event"] == "rewind"]
    assert (back["to_step"], back["skipped"]) == (0, [[45, 46]])
    ended = assert_as_rewound(start, tmp_path / "run", whole, recipe, step=30, signals=["SIGTERM"])
    assert ended.status == EXIT_PREEMPTED, ended.output


@MANY
@pytest.mark.parametrize("seed", range(5))
def test_signals_at_any_moment_of_a_rewind_lose_nothing(seed, start, rewinding, tmp_path):
    generator = np.random.default_rng(seed)
    signals = [str(name) for name in generator.choice(list(ENDS), size=generator.integers(1, 3))]
    at = int(generator.integers(rewinding.moments // 2, rewinding.moments))
    assert_as_rewound(start, tmp_path / "run", rewinding, REWINDING, at=at, signals=signals)

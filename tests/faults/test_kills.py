"""kill -9 at seeded random moments, checkpoint writing and rewinding among them: nothing is lost, nothing is there twice."""

from __future__ import annotations

import numpy as np
import pytest

from stability.checkpoints import list_checkpoints
from stability.integrity import damage

from ..conftest import events_of
from .conftest import assert_as_unbroken

REWINDING = (
    "train.steps=60",
    "checkpoint.every=10",
    "checkpoint.keep=3",
    "interventions=[{kind: rewind, min_sigmas: 5}]",
    "stress=[{kind: corrupt_sequences, step: 45, steps: 2, sequences: 8, pattern: random}]",
)


def kill_until_finished(start, directory, seed, kills, moments, *overrides):
    """Kill a run again and again at random file operations; returns how many of the kills met it alive."""
    generator = np.random.default_rng(seed)
    met = 0
    for _ in range(kills):
        ended = start(directory, *overrides, at=int(generator.integers(1, moments)), signals=["SIGKILL"])
        assert ended.signal == "SIGKILL" or ended.status == 0, ended.output
        met += ended.signal == "SIGKILL"
        for checkpoint in list_checkpoints(directory):
            assert damage(checkpoint) is None, "what has a checkpoint's name is whole at any time"
        if ended.status == 0:
            break
    ended = start(directory, *overrides)
    assert ended.status == 0, ended.output
    return met


def killed_once_each(start, tmp_path, unbroken, seed, kills):
    for number, at in enumerate(np.random.default_rng(seed).integers(1, unbroken.moments, size=kills)):
        directory = tmp_path / f"killed_{number}"
        ended = start(directory, at=int(at), signals=["SIGKILL"])
        assert ended.signal == "SIGKILL", ended.output
        again = start(directory)
        assert again.status == 0, again.output
        assert_as_unbroken(directory, unbroken.directory)


def test_a_run_killed_at_any_moment_goes_on_as_if_nothing_had_been(start, unbroken, tmp_path):
    killed_once_each(start, tmp_path, unbroken, seed=0, kills=4)


@pytest.mark.faults
def test_a_run_killed_at_any_of_many_moments_goes_on_as_if_nothing_had_been(start, unbroken, tmp_path):
    killed_once_each(start, tmp_path, unbroken, seed=1, kills=30)


@pytest.mark.faults
def test_a_run_killed_over_and_over_ends_as_if_it_had_not_been(start, unbroken, tmp_path):
    assert kill_until_finished(start, tmp_path / "run", 2, 20, unbroken.moments // 2) >= 5
    assert_as_unbroken(tmp_path / "run", unbroken.directory)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_rewinds_may_be_killed_while_it_does(seed, start, tmp_path):
    """Rows that were taken back are kept once each, whatever the moment of the kill."""
    plain = start(tmp_path / "plain", *REWINDING)
    assert plain.status == 0, plain.output
    assert [e["event"] for e in events_of(plain.directory)].count("rewind") >= 1
    assert kill_until_finished(start, tmp_path / "killed", seed, 10, plain.moments // 2, *REWINDING) >= 2
    assert_as_unbroken(tmp_path / "killed", plain.directory)
    kept = [(tmp_path / name / "abandoned.jsonl").read_text().splitlines() for name in ("plain", "killed")]
    assert len(kept[0]) == len(kept[1])

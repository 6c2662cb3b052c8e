"""kill -9 at seeded random moments, checkpoint writing and rewinding among them: nothing is lost, nothing is there twice."""

from __future__ import annotations

import numpy as np
import pytest

from record.checkpoints import list_checkpoints
from record.integrity import damage

from .conftest import FORMS, MANY_FORMS, REWINDING, assert_as_unbroken, rewound

OFTEN = ("train.steps=12", "checkpoint.every=2", "body.n_embd=128")
"""Much of this run's time goes into its checkpoints, of six megabytes each."""
HALF_WRITTEN = "checkpoints/.step_*.tmp/.tmp*"
"""The file that the safetensors library, which Python's hook does not see into, writes before it gives it its name."""
MOST_TRIES = 10
"""For each kill: a run may end before its moment comes."""


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


def killed_once_each(form, tmp_path, seed, kills):
    unbroken = form.unbroken()
    for number, at in enumerate(np.random.default_rng(seed).integers(1, unbroken.moments, size=kills)):
        directory = tmp_path / f"killed_{number}"
        ended = form.start(directory, at=int(at), signals=["SIGKILL"])
        assert ended.signal == "SIGKILL", ended.output
        again = form.start(directory)
        assert again.status == 0, again.output
        assert_as_unbroken(directory, unbroken.directory)


@pytest.mark.parametrize(("form", "kills"), [("whole", 4), ("sharded", 1)], indirect=["form"])
def test_a_run_killed_at_any_moment_goes_on_as_if_nothing_had_been(form, kills, tmp_path):
    killed_once_each(form, tmp_path, seed=0, kills=kills)


@pytest.mark.faults
@pytest.mark.parametrize("form", FORMS, indirect=True)
def test_a_run_killed_at_any_of_many_moments_goes_on_as_if_nothing_had_been(form, tmp_path):
    killed_once_each(form, tmp_path, seed=1, kills=30)


@pytest.mark.faults
@pytest.mark.parametrize("form", FORMS, indirect=True)
def test_a_run_killed_over_and_over_ends_as_if_it_had_not_been(form, tmp_path):
    unbroken = form.unbroken()
    assert kill_until_finished(form.start, tmp_path / "run", 2, 20, unbroken.moments // 2) >= 5
    assert_as_unbroken(tmp_path / "run", unbroken.directory)


def killed_from_outside(start, tmp_path, unbroken, seed, kills, *overrides, inside=None):
    """Kill runs after random times, spread over the time that the unbroken one took, until so many have met one alive.

    ``inside``: a file that is there while something is written; then only kills that left it behind count.
    """
    generator = np.random.default_rng(seed)
    plan = {} if inside is None else {"kill_at_file": inside}
    met, takes = 0, unbroken.seconds
    for number in range(MOST_TRIES * kills):
        directory = tmp_path / f"killed_{number}"
        ended = start(directory, *overrides, kill_after=float(generator.uniform(0, takes)), **plan)
        assert ended.signal == "SIGKILL" or ended.status == 0, ended.output
        takes = ended.seconds if ended.status == 0 else takes  # the first run of all makes the tokens and takes longer
        met += ended.signal == "SIGKILL" and (inside is None or any(directory.glob(inside)))
        for checkpoint in list_checkpoints(directory):
            assert damage(checkpoint) is None, "what has a checkpoint's name is whole at any time"
        again = start(directory, *overrides)
        assert again.status == 0, again.output
        assert_as_unbroken(directory, unbroken.directory)
        assert not any(directory.glob("checkpoints/.*")), "what was half written is gone"
        if met == kills:
            return
    pytest.fail(f"of {MOST_TRIES * kills} kills only {met} met a run alive at the right moment")


@pytest.mark.parametrize("form", MANY_FORMS, indirect=True)
def test_a_run_killed_from_outside_at_any_time_goes_on_as_if_nothing_had_been(form, tmp_path):
    killed_from_outside(form.start, tmp_path, form.unbroken(), seed=3, kills=1)


@pytest.mark.faults
@pytest.mark.parametrize("form", FORMS, indirect=True)
def test_a_run_killed_from_outside_at_any_of_many_times_goes_on_as_if_nothing_had_been(form, tmp_path):
    killed_from_outside(form.start, tmp_path, form.unbroken(*OFTEN), 4, 10, *OFTEN)


@pytest.mark.faults
@pytest.mark.parametrize("form", FORMS, indirect=True)
def test_a_run_killed_while_tensors_are_being_written_goes_on_as_if_nothing_had_been(form, tmp_path):
    killed_from_outside(form.start, tmp_path, form.unbroken(*OFTEN), 5, 5, *OFTEN, inside=HALF_WRITTEN)


@pytest.mark.faults
@pytest.mark.parametrize("form", ["sharded"], indirect=True)
def test_a_run_with_shards_rewinds_as_one_without_and_may_be_killed_while_it_does(form, tmp_path):
    """A rewind waits for the checkpoint that is being written."""
    rewinding = rewound(form.start, tmp_path / "rewinding")
    assert kill_until_finished(form.start, tmp_path / "killed", 0, 10, rewinding.moments // 2, *REWINDING) >= 2
    assert_as_unbroken(tmp_path / "killed", rewinding.directory)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_rewinds_may_be_killed_while_it_does(seed, start, rewinding, tmp_path):
    """Rows that were taken back are kept once each, whatever the moment of the kill."""
    assert kill_until_finished(start, tmp_path / "killed", seed, 10, rewinding.moments // 2, *REWINDING) >= 2
    assert_as_unbroken(tmp_path / "killed", rewinding.directory)
    kept = [(run / "abandoned.jsonl").read_text().splitlines() for run in (rewinding.directory, tmp_path / "killed")]
    assert len(kept[0]) == len(kept[1])

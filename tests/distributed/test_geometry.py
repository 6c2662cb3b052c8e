"""Geometry distillation on several ranks: each compares its own tokens, so that two ranks are one with two micro-batches."""

from __future__ import annotations

import pytest

from common.command import EXIT_PREEMPTED
from record.checkpoints import joined_optimizer, list_checkpoints
from tests.conftest import rows_of
from tests.faults.conftest import weights_of

from .ranks import Ranks, rows_written, wait_until
from .test_world_sizes import EDGE, assert_same_curves, assert_same_weights


@pytest.fixture
def launch(recipe):
    started = []

    def start(name, *overrides, **options):
        started.append(Ranks(recipe, f"name={name}", *overrides, **options))
        return started[-1]

    yield start
    for ranks in started:
        ranks.kill()


@pytest.fixture
def taught(launch, tmp_path):
    """The keys of a student whose states are mapped to those of a wider teacher."""
    assert launch("teacher", "body.n_embd=48", world_size=1).wait()[0][0] == 0
    return (
        "objective.kind=geometry",
        f"objective.teacher={list_checkpoints(tmp_path / 'teacher')[-1]}",
        "objective.form=projection",
        "objective.positions=100",
    )


def test_two_ranks_are_one_with_two_micro_batches(taught, launch, tmp_path):
    taught = (*taught, EDGE)
    one = launch("one", *taught, "train.micro_batch_size=4", world_size=1).wait()
    assert [status for status, _ in one] == [0], one
    for name, sharded in (("two", False), ("sharded", True)):
        ended = launch(name, *taught, world_size=2, sharded=sharded).wait()
        assert [status for status, _ in ended] == [0, 0], ended
        assert_same_curves(tmp_path / "one", tmp_path / name, closely=12)
        assert_same_weights(tmp_path / "one", tmp_path / name)


@pytest.mark.faults
@pytest.mark.parametrize("sharded", [False, True], ids=["DDP", "FSDP2"])
def test_a_run_with_a_projection_goes_on_to_the_bit(sharded, taught, launch, tmp_path):
    longer = (*taught, "train.steps=80", "train.eval_every=40", "checkpoint.every=40")
    whole = launch("whole", *longer, sharded=sharded).wait()
    assert [status for status, _ in whole] == [0, 0], whole
    ranks = launch("moved", *longer, sharded=sharded)
    wait_until(lambda: rows_written(tmp_path / "moved") > 6, ranks)
    ranks.processes[0].terminate()
    assert [status for status, _ in ranks.wait()] == [EXIT_PREEMPTED] * 2
    ended = launch("moved", *longer, sharded=sharded).wait()
    assert [status for status, _ in ended] == [0, 0], ended
    assert rows_of(tmp_path / "moved") == rows_of(tmp_path / "whole")
    for state_of in (weights_of, joined_optimizer):
        a, b = (state_of(list_checkpoints(tmp_path / name)[-1]) for name in ("whole", "moved"))
        assert any(key.startswith("projection.weight") for key in a)
        assert a.keys() == b.keys()
        assert all(a[key].equal(b[key]) for key in a), state_of

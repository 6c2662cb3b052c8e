"""Work beside training on a single rank; several are in tests/distributed/test_shards.py."""

from __future__ import annotations

import errno
import threading

import pytest
import torch

from training.background import Background


@pytest.fixture
def background():
    return Background(torch.device("cpu"))


def test_pieces_are_done_one_after_the_other_and_only_when_all_ranks_have_voted_so(background):
    done, may_end = [], threading.Event()
    background.begin([lambda: may_end.wait() and done.append(1), lambda: done.append(2)])
    background.go_on(*background.votes())
    assert background.pending
    assert done == []
    may_end.set()
    background.finish()
    assert done == [1, 2]
    assert not background.pending
    old = background.votes()
    background.begin([lambda: may_end.wait() and done.append(3)])
    background.go_on(*old)
    assert background.pending, "what was voted before it began says nothing about it"
    background.finish()
    assert done == [1, 2, 3]


def test_what_a_piece_raises_comes_out_in_the_training_thread_after_it_was_cleared_away(background):
    done = []

    def refuse():
        raise OSError(errno.ENOSPC, "No space left on device", "shard")

    background.begin([refuse, lambda: done.append("next")], abandon=lambda: done.append("cleared away"))
    with pytest.raises(OSError, match="No space left on device: 'shard'"):
        background.finish()
    assert done == ["cleared away"]
    assert not background.pending
    background.salvage()
    assert done == ["cleared away"]


def test_after_a_failure_elsewhere_what_is_under_way_is_completed_if_it_can_be(background):
    done = []
    background.begin([lambda: done.append(1), lambda: done.append(2)])
    background.salvage()
    assert done == [1, 2]
    background.begin([lambda: done.append(3), lambda: 1 / 0, lambda: done.append(4)])
    background.salvage()
    assert done == [1, 2, 3], "another rank has not written its shard"

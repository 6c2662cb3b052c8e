"""Batches: the same sequences whatever the number of ranks, each once an epoch, from any step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from data.batches import Batches, batch_number, evaluation_batches

SHAPES = {
    "sequences": st.integers(1, 40),
    "length": st.integers(1, 7),
    "batch": st.sampled_from([4, 8, 12]),
    "seed": st.integers(0, 2**32),
}


def ids_for(sequences: int, length: int, rest: int = 0) -> np.ndarray:
    """Tokens 0, 1, 2, ...: sequence i starts with token i * length."""
    return np.arange(sequences * length + 1 + rest, dtype=np.uint16)


@given(**SHAPES, step=st.integers(1, 50))
def test_world_sizes_see_the_same_sequences(sequences: int, length: int, batch: int, seed: int, step: int) -> None:
    ids = ids_for(sequences, length)
    rows = {
        world: np.concatenate(
            [Batches(ids, length, batch, seed, rank=rank, world_size=world).sequences(step) for rank in range(world)]
        )
        for world in (1, 2, 4)
    }
    assert rows[1].shape == (batch,)
    assert np.array_equal(rows[1], rows[2])
    assert np.array_equal(rows[1], rows[4])


@given(**SHAPES)
def test_each_epoch_visits_each_sequence_once(sequences: int, length: int, batch: int, seed: int) -> None:
    batches = Batches(ids_for(sequences, length, rest=length - 1), length, batch, seed)
    assert batches.sequences_per_epoch == sequences
    epochs = 3
    steps = -(-epochs * sequences // batch)
    visited = np.concatenate([batches.sequences(step) for step in range(1, steps + 1)])
    for epoch in visited[: epochs * sequences].reshape(epochs, sequences):
        assert sorted(epoch) == list(range(sequences))


@given(**SHAPES, steps=st.lists(st.integers(1, 30), min_size=1, max_size=10))
def test_a_batch_does_not_depend_on_what_was_read_before(
    sequences: int, length: int, batch: int, seed: int, steps: list[int]
) -> None:
    ids = ids_for(sequences, length)
    used = Batches(ids, length, batch, seed)
    for step in steps:
        fresh = Batches(ids, length, batch, seed)
        for one, other in zip(used.at(step), fresh.at(step), strict=True):
            assert torch.equal(one, other)


def test_inputs_and_targets_are_the_window_and_its_shift() -> None:
    batches = Batches(ids_for(50, 8), 8, 4, seed=1)
    x_BT, y_BT = batches.at(3)
    assert x_BT.dtype == y_BT.dtype == torch.int64
    assert x_BT.is_contiguous() and y_BT.is_contiguous()
    expected = torch.from_numpy(batches.sequences(3))[:, None] * 8 + torch.arange(8)
    assert torch.equal(x_BT, expected)
    assert torch.equal(y_BT, expected + 1)


def test_seeds_and_epochs_differ() -> None:
    ids = ids_for(100, 4)
    orders = [tuple(Batches(ids, 4, 100, seed).sequences(step)) for seed in (0, 1) for step in (1, 2)]
    assert len(set(orders)) == 4


def test_the_order_is_the_one_documented() -> None:
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([7, 1])))
    assert np.array_equal(Batches(ids_for(10, 4), 4, 10, seed=7).sequences(2), generator.permutation(10))


def test_a_memory_map_is_read_like_an_array(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 1 << 16, 1001, dtype=np.uint16)
    ids.tofile(tmp_path / "ids.bin")
    mapped = np.memmap(tmp_path / "ids.bin", dtype=np.uint16, mode="r")
    for one, other in zip(Batches(mapped, 10, 4, 0).at(9), Batches(ids, 10, 4, 0).at(9), strict=True):
        assert torch.equal(one, other)


@given(
    available=st.integers(1, 30),
    wanted=st.integers(1, 40),
    rows=st.integers(1, 7),
    world=st.integers(1, 5),
    length=st.integers(1, 5),
)
def test_evaluation_covers_the_first_windows_once(
    available: int, wanted: int, rows: int, world: int, length: int
) -> None:
    ids = ids_for(available, length)
    firsts: list[int] = []
    shapes = []
    for rank in range(world):
        shapes.append([])
        for x_RT, y_RT in evaluation_batches(ids, length, wanted, rows, rank=rank, world_size=world):
            assert 1 <= len(x_RT) <= rows
            counts_R = (y_RT != -100).all(1)
            assert torch.equal(counts_R, (y_RT != -100).any(1))
            assert torch.equal((x_RT + 1)[counts_R], y_RT[counts_R])
            firsts += x_RT[counts_R, 0].tolist()
            shapes[-1].append(x_RT.shape)
    assert all(own == shapes[0] for own in shapes), "ranks that communicate must make the same number of passes"
    assert sorted(firsts) == [window * length for window in range(min(wanted, available))]


def test_what_cannot_be_batched_is_told() -> None:
    with pytest.raises(InputError, match=r"train.batch_size=6: must be a multiple of the number of processes, 4"):
        Batches(ids_for(10, 4), 4, 6, 0, world_size=4)
    with pytest.raises(InputError, match=r"data.sequence_length=8: the training split has only 8 tokens"):
        Batches(np.arange(8, dtype=np.uint16), 8, 4, 0)
    with pytest.raises(InputError, match=r"data.validation_fraction: the validation split has only 8 tokens"):
        evaluation_batches(np.arange(8, dtype=np.uint16), 8, 4, 4)


RANGES = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 12)).map(lambda r: [r[0], r[0] + r[1]]), max_size=5)


@given(skipped=RANGES)
def test_skipped_batches_are_left_out_and_no_other(skipped: list[list[int]]) -> None:
    left_out = {batch for first, last in skipped for batch in range(first, last + 1)}
    kept = [batch for batch in range(1, 200) if batch not in left_out]
    assert [batch_number(step, skipped) for step in range(1, 101)] == kept[:100]

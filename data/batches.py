"""Batches as a pure function of (seed, number, rank, world size): no loader state, nothing to restore.

Sequences are the windows of T + 1 tokens at multiples of T. Each epoch is a permutation of all of them, drawn from the
seed and the epoch's number; a batch is the next B of that endless row, and each rank takes an equal part of it. Step n
draws batch n, or a later one when batches are skipped.

Shapes: B sequences of a batch over all ranks, R = B / W rows of one rank, T positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from common.errors import InputError

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""The target of a position that does not count."""


def batch_number(step: int, skipped: Iterable[Sequence[int]]) -> int:
    """Which batch (from 1) a step draws when the batches of the ranges ``skipped``, [first, last], are left out."""
    batch, counted_to = step, 0
    for first, last in sorted((first, last) for first, last in skipped):
        new = range(max(first, counted_to + 1), last + 1)  # ranges may overlap
        if new and batch >= new.start:
            batch += len(new)
            counted_to = last
    return batch


class Batches:
    """The training batches of one rank.

    Args:
        split_ids: token ids, 1-D.
        sequence_length: T.
        batch_size: B, a multiple of ``world_size``.
        seed: of the order of the sequences.

    Raises:
        InputError: if B is no multiple of the world size, or the split is too short for one sequence.
    """

    def __init__(
        self,
        split_ids: np.ndarray,
        sequence_length: int,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size % world_size:
            raise InputError(
                f"train.batch_size={batch_size}: must be a multiple of the number of processes, {world_size}"
            )
        self._windows_ST = _windows(split_ids, sequence_length)
        if len(self._windows_ST) == 0:
            raise InputError(
                f"data.sequence_length={sequence_length}: the training split has only {len(split_ids)} tokens, "
                "too few for one sequence; shorten it or add text"
            )
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._rows = batch_size // world_size
        self._orders: dict[int, np.ndarray] = {}

    @property
    def sequences_per_epoch(self) -> int:
        """How many sequences the split holds; an epoch visits each once."""
        return len(self._windows_ST)

    def sequences(self, batch: int) -> np.ndarray:
        """Return the indices (int64, shape R) of this rank's sequences in a batch; batches count from 1."""
        first = (batch - 1) * self._batch_size + self._rank * self._rows
        epoch_R, place_R = np.divmod(np.arange(first, first + self._rows), self.sequences_per_epoch)
        epochs = range(int(epoch_R[0]), int(epoch_R[-1]) + 1)
        self._orders = {epoch: self._orders[epoch] if epoch in self._orders else self._order(epoch) for epoch in epochs}
        return np.concatenate([self._orders[epoch][place_R[epoch_R == epoch]] for epoch in epochs])

    def _order(self, epoch: int) -> np.ndarray:
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self._seed, epoch])))
        return generator.permutation(self.sequences_per_epoch)

    def at(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (x_RT, y_RT), int64, of a batch (counted from 1): what this rank feeds, and the tokens that follow."""
        return _inputs_and_targets(self._windows_ST[self.sequences(batch)])


def evaluation_batches(
    split_ids: np.ndarray,
    sequence_length: int,
    sequences: int,
    rows_per_batch: int,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (x_RT, y_RT), int64, R = ``rows_per_batch`` or less: this rank's part of the first ``sequences`` windows.

    The parts of all ranks cover each window once and have the same shapes, so that sharded models may communicate in
    every forward pass: a rank that is short of a window repeats one with all targets -100. A split that holds fewer
    than ``sequences`` windows is taken whole. Raises InputError, at the call, for a split without one window.
    """
    windows_ST = _windows(split_ids, sequence_length)[:sequences]
    if len(windows_ST) == 0:
        raise InputError(
            f"data.validation_fraction: the validation split has only {len(split_ids)} tokens, too few for one "
            f"sequence of data.sequence_length={sequence_length}; hold out more"
        )
    share = -(-len(windows_ST) // world_size)
    return _evaluation_rows(windows_ST, range(rank * share, (rank + 1) * share), rows_per_batch)


def _evaluation_rows(
    windows_ST: np.ndarray, own: range, rows_per_batch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(own.start, own.stop, rows_per_batch):
        index_R = np.arange(start, min(start + rows_per_batch, own.stop))
        x_RT, y_RT = _inputs_and_targets(windows_ST[np.minimum(index_R, len(windows_ST) - 1)])
        y_RT[index_R >= len(windows_ST)] = IGNORED
        yield x_RT, y_RT


def _windows(split_ids: np.ndarray, sequence_length: int) -> np.ndarray:
    """Return the view (S, T + 1) of all windows of T + 1 tokens that start at multiples of T."""
    if len(split_ids) <= sequence_length:
        return np.empty((0, sequence_length + 1), split_ids.dtype)
    return sliding_window_view(split_ids, sequence_length + 1)[::sequence_length]


def _inputs_and_targets(windows_RT: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    import torch  # the rest of data/ is used without it

    x_RT, y_RT = (
        torch.from_numpy(part.astype(np.int64, order="C")) for part in (windows_RT[:, :-1], windows_RT[:, 1:])
    )
    return x_RT, y_RT

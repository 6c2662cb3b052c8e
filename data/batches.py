"""Batches as a pure function of (seed, batch number, rank, world size): there is no loader state to restore.

Sequences are windows of T + 1 tokens at multiples of T. Each epoch is a permutation of them, drawn from the seed and the
epoch; batch n is the n-th group of B in that endless order, split evenly over the ranks. Step n draws batch n, or a later
one if batches are skipped.

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
"""Target of a position that does not count."""


def batch_number(step: int, skipped: Iterable[Sequence[int]]) -> int:
    """The batch (from 1) that a step draws when the ranges ``skipped``, [first, last], are left out."""
    batch, counted_to = step, 0
    for first, last in sorted((first, last) for first, last in skipped):
        new = range(max(first, counted_to + 1), last + 1)  # ranges may overlap
        if new and batch >= new.start:
            batch += len(new)
            counted_to = last
    return batch


class Batches:
    """The training batches of one rank: sequences of T tokens from the 1-D ``split_ids``, in an order drawn from ``seed``.
    Raises InputError if ``batch_size`` is not a multiple of the world size, or the split is too short for one sequence."""

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
        """Number of sequences in the split; an epoch visits each once."""
        return len(self._windows_ST)

    def sequences(self, batch: int) -> np.ndarray:
        """Indices (R,), int64, of this rank's sequences in a batch; batches count from 1."""
        first = (batch - 1) * self._batch_size + self._rank * self._rows
        epoch_R, place_R = np.divmod(np.arange(first, first + self._rows), self.sequences_per_epoch)
        epochs = range(int(epoch_R[0]), int(epoch_R[-1]) + 1)
        self._orders = {epoch: self._orders[epoch] if epoch in self._orders else self._order(epoch) for epoch in epochs}
        return np.concatenate([self._orders[epoch][place_R[epoch_R == epoch]] for epoch in epochs])

    def _order(self, epoch: int) -> np.ndarray:
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self._seed, epoch])))
        return generator.permutation(self.sequences_per_epoch)

    def at(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(x_RT, y_RT), int64, of a batch (counted from 1): inputs of this rank, and the next tokens."""
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
    """(x_RT, y_RT), int64, R at most ``rows_per_batch``: this rank's share of the first ``sequences`` windows.

    All ranks get the same shapes, so that sharded models can communicate in every forward pass: a rank that is short of a window
    repeats the last one with all targets -100. A split with fewer windows is taken whole. Raises InputError, at the call, for a
    split without a window.
    """
    windows_ST = _windows(split_ids, sequence_length)[:sequences]
    if len(windows_ST) == 0:
        raise InputError(
            f"data.validation_fraction: the validation split has only {len(split_ids)} tokens, too few for one "
            f"sequence of data.sequence_length={sequence_length}; hold out more"
        )
    share = -(-len(windows_ST) // world_size)
    starts = range(rank * share, (rank + 1) * share, rows_per_batch)
    own = (np.arange(start, min(start + rows_per_batch, (rank + 1) * share)) for start in starts)
    return (_evaluation_rows(windows_ST, index_R) for index_R in own)


def _evaluation_rows(windows_ST: np.ndarray, index_R: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    x_RT, y_RT = _inputs_and_targets(windows_ST[np.minimum(index_R, len(windows_ST) - 1)])
    y_RT[index_R >= len(windows_ST)] = IGNORED
    return x_RT, y_RT


def _windows(split_ids: np.ndarray, sequence_length: int) -> np.ndarray:
    """View (S, T + 1) of the windows of T + 1 tokens at multiples of T."""
    if len(split_ids) <= sequence_length:
        return np.empty((0, sequence_length + 1), split_ids.dtype)
    return sliding_window_view(split_ids, sequence_length + 1)[::sequence_length]


def _inputs_and_targets(windows_RT: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    import torch  # the rest of data/ is used without it

    x_RT, y_RT = (
        torch.from_numpy(part.astype(np.int64, order="C")) for part in (windows_RT[:, :-1], windows_RT[:, 1:])
    )
    return x_RT, y_RT

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

from common.errors import InputError

if TYPE_CHECKING:
    import torch

    from .tokens.spans import TokenIds

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
        split_ids: TokenIds,
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
        self._ids = split_ids
        self._length = sequence_length
        if window_count(split_ids, sequence_length) == 0:
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
        return window_count(self._ids, self._length)

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
        return _inputs_and_targets(windows(self._ids, self._length, self.sequences(batch)))


def evaluation_batches(
    split_ids: TokenIds,
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
    count = min(window_count(split_ids, sequence_length), sequences)
    if count == 0:
        raise InputError(
            f"data.validation_fraction: the validation split has only {len(split_ids)} tokens, too few for one "
            f"sequence of data.sequence_length={sequence_length}; hold out more"
        )
    share = -(-count // world_size)
    starts = range(rank * share, (rank + 1) * share, rows_per_batch)
    own = (np.arange(start, min(start + rows_per_batch, (rank + 1) * share)) for start in starts)
    return (_evaluation_rows(split_ids, sequence_length, index_R, count) for index_R in own)


def _evaluation_rows(
    split_ids: TokenIds, sequence_length: int, index_R: np.ndarray, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    x_RT, y_RT = _inputs_and_targets(windows(split_ids, sequence_length, np.minimum(index_R, count - 1)))
    y_RT[index_R >= count] = IGNORED
    return x_RT, y_RT


def window_count(split_ids: TokenIds, sequence_length: int) -> int:
    """How many windows of T + 1 tokens at multiples of T a split has."""
    return max(0, (len(split_ids) - 1) // sequence_length)


def windows(split_ids: TokenIds, sequence_length: int, index_R: np.ndarray) -> np.ndarray:
    """These windows (R, T + 1) of a split, counted from 0."""
    starts = (index_R * sequence_length).tolist()
    return np.stack([split_ids[start : start + sequence_length + 1] for start in starts])


def _inputs_and_targets(windows_RT: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    import torch  # the rest of data/ is used without it

    x_RT, y_RT = (
        torch.from_numpy(part.astype(np.int64, order="C")) for part in (windows_RT[:, :-1], windows_RT[:, 1:])
    )
    return x_RT, y_RT

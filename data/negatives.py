"""Negatives: sequences of a batch in which nothing is to be predicted. Pure functions of (seed, batch number, row of the batch).

Shapes: R rows of one rank, T positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from common.seeds import stream_seed

from .batches import IGNORED

if TYPE_CHECKING:
    import torch

NegativeKind = Literal["shuffled", "random", "corpus"]


def negative_count(share: float, batch_size: int) -> int:
    """Sequences of every batch that are negatives."""
    return round(share * batch_size)


class Negatives:
    """Replaces ``count`` of the B sequences of every batch, always the same rows, evenly spaced: any number of ranks has the same
    ones, each nearly as many, and so has each micro-batch."""

    def __init__(
        self,
        kind: NegativeKind,
        *,
        count: int,
        batch_size: int,
        vocab_size: int,
        seed: int,
        corpus: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """``corpus``: the text of kind corpus, longer than a sequence."""
        self._kind, self._vocab_size, self._seed, self._corpus = kind, vocab_size, seed, corpus
        place_B = np.arange(batch_size + 1) * count // batch_size
        self.is_negative_B: npt.NDArray[np.bool_] = np.diff(place_B) > 0
        """By row of the batch over all ranks. The first one never is, as long as there are others."""

    def rows(self, first_row: int, rows: int) -> npt.NDArray[np.int64]:
        """The negatives among ``rows`` rows of a rank whose first is ``first_row`` of the batch, counted from there."""
        return np.flatnonzero(self.is_negative_B[first_row : first_row + rows])

    def replace(self, batch: int, x_RT: torch.Tensor, y_RT: torch.Tensor, *, first_row: int) -> None:
        """Put the negatives of a batch in the place of their rows; none of their positions has a target."""
        import torch  # the rest of data/ is used without it

        for row in self.rows(first_row, len(x_RT)):
            generator = np.random.default_rng(stream_seed(self._seed, "negatives", batch, first_row + int(row)))
            x_RT[row] = torch.from_numpy(self._sequence(generator, x_RT[row].numpy()))
            y_RT[row] = IGNORED

    def _sequence(self, generator: np.random.Generator, text_T: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """What comes in the place of ``text_T``."""
        if self._kind == "shuffled":
            return generator.permutation(text_T)
        if self._kind == "random":
            return generator.integers(self._vocab_size, size=len(text_T))
        assert self._corpus is not None
        start = int(generator.integers(len(self._corpus) - len(text_T) + 1))
        return self._corpus[start : start + len(text_T)]

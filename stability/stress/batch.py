"""Stresses of the batch. Shapes: R rows of this rank, T positions."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from common.seeds import stream_seed
from data.batches import IGNORED

from .base import STRESSES, Setup, Stress, When


@STRESSES.register("corrupt_sequences")
class CorruptSequences(Stress):
    """Corrupts the first sequences of a batch: random tokens, or targets that do not count."""

    counts = "batches"

    @dataclass(frozen=True, kw_only=True)
    class Options(When):
        sequences: Annotated[int, Field(ge=1, le=1 << 20)]
        """Number of sequences, counted over all ranks."""
        pattern: Literal["random", "repeated", "ignored"]
        """random: drawn uniformly from the vocabulary; repeated: a few random tokens over and over; ignored: the text
        stays, but none of its tokens is a target."""
        period: Annotated[int, Field(ge=1, le=1 << 20)] = 4
        """Length of the repeated pattern, in tokens."""

    @classmethod
    def problems(cls, options: Any, setup: Setup) -> Iterator[tuple[str, str]]:
        """Also more sequences than the batch has, and a batch without any target."""
        yield from super().problems(options, setup)
        if options.sequences > setup.batch_size:
            yield "sequences", f"{options.sequences} is more than train.batch_size={setup.batch_size}"
        if options.pattern == "ignored" and options.sequences == setup.batch_size:
            yield "sequences", f"all {options.sequences} sequences of a batch without targets leave no loss"

    def batch(self, batch: int, x_RT: Tensor, y_RT: Tensor, *, first_row: int) -> None:
        o, place = self.options, self.place
        rows, length = min(o.sequences - first_row, len(x_RT)), x_RT.shape[1] + 1
        if o.pattern == "ignored":
            y_RT[: max(0, rows)] = IGNORED
            return
        for row in range(rows):
            generator = np.random.default_rng(stream_seed(place.seed, "stress", place.number, batch, first_row + row))
            drawn = generator.integers(place.vocab_size, size=length if o.pattern == "random" else o.period)
            window = torch.from_numpy(np.resize(drawn, length))
            x_RT[row], y_RT[row] = window[:-1], window[1:]

    def describe(self, step: int, batch: int) -> str:
        o = self.options
        what = "without targets" if o.pattern == "ignored" else f"replaced by {o.pattern} tokens"
        return f"{o.sequences} sequences of batch {batch} {what}"

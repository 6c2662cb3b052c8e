"""Stresses of the batch's shape and of the ranks' shares. Shapes: R rows of this rank, T positions."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from data.batches import IGNORED
from ranks.collectives import world_size

from .base import STRESSES, Setup, Stress, When


@STRESSES.register("short_sequences")
class ShortSequences(Stress):
    """Cuts each sequence into several, whose length jumps where the stress ends; the tokens stay."""

    @dataclass(frozen=True, kw_only=True)
    class Options(When):
        parts: Annotated[int, Field(ge=2, le=1 << 20)]
        """Sequences that each one is cut into; must divide data.sequence_length."""

    @classmethod
    def problems(cls, options: Any, setup: Setup) -> Iterator[tuple[str, str]]:
        """Also a length that cannot be divided."""
        yield from super().problems(options, setup)
        if setup.sequence_length % options.parts:
            yield "parts", f"{options.parts} does not divide data.sequence_length={setup.sequence_length}"

    def reshape(self, batch: int, x_RT: Tensor, y_RT: Tensor) -> tuple[Tensor, Tensor]:
        length, rest = divmod(x_RT.shape[1], self.options.parts)
        if rest:
            self.refuse(
                "parts", f"{self.options.parts} does not divide the {x_RT.shape[1]} tokens that another stress left"
            )
        return x_RT.reshape(-1, length), y_RT.reshape(-1, length)

    def describe(self, step: int, batch: int) -> str:
        return f"each sequence cut into {self.options.parts}"


@STRESSES.register("small_batch")
class SmallBatch(Stress):
    """Uses only some sequences of the batch, whose size jumps where the stress ends."""

    @dataclass(frozen=True, kw_only=True)
    class Options(When):
        sequences: Annotated[int, Field(ge=1, le=1 << 20)]
        """Number of sequences over all ranks, evenly spaced in the batch. The log still counts the tokens of the whole batch."""

    @classmethod
    def problems(cls, options: Any, setup: Setup) -> Iterator[tuple[str, str]]:
        """Also no fewer sequences than the batch has."""
        yield from super().problems(options, setup)
        if options.sequences >= setup.batch_size:
            yield "sequences", f"{options.sequences} is not less than train.batch_size={setup.batch_size}"

    def check(self, model: nn.Module, optimizer: Optimizer) -> None:
        if self.options.sequences % world_size():
            self.refuse(
                "sequences", f"{self.options.sequences} is not a multiple of the number of processes, {world_size()}"
            )

    def reshape(self, batch: int, x_RT: Tensor, y_RT: Tensor) -> tuple[Tensor, Tensor]:
        # Evenly spaced rows are the same ones on any number of ranks.
        rows = len(x_RT)
        kept = min(rows, self.options.sequences // world_size())
        index = [i * rows // kept for i in range(kept)]
        return x_RT[index], y_RT[index]

    def describe(self, step: int, batch: int) -> str:
        return f"only {self.options.sequences} sequences of batch {batch} used"


@STRESSES.register("dead_rank")
class DeadRank(Stress):
    """Leaves the share of one of several ranks out of the gradient, which is still the mean over all: that rank sends zeros."""

    @dataclass(frozen=True, kw_only=True)
    class Options(When):
        ranks: Annotated[int, Field(ge=2, le=1 << 20)]
        """Number of equal shares of the batch; the run itself may have any number of processes."""
        rank: Annotated[int, Field(ge=0, le=1 << 20)] = 0
        """The share that is missing, from 0."""

    @classmethod
    def problems(cls, options: Any, setup: Setup) -> Iterator[tuple[str, str]]:
        """Also a share without a sequence, and one that is not there."""
        yield from super().problems(options, setup)
        if options.ranks > setup.batch_size:
            yield "ranks", f"{options.ranks} is more than train.batch_size={setup.batch_size}"
        if options.rank >= options.ranks:
            yield "rank", f"{options.rank} is not one of the ranks 0 to {options.ranks - 1}"

    def lose(self, batch: int, y_RT: Tensor, *, first_row: int, batch_rows: int) -> None:
        first, last = (
            k * batch_rows // self.options.ranks - first_row for k in (self.options.rank, self.options.rank + 1)
        )
        y_RT[max(0, first) : max(0, last)] = IGNORED

    def describe(self, step: int, batch: int) -> str:
        return f"the share of rank {self.options.rank} of {self.options.ranks} missing in the gradient"

"""Stresses of the batch's text. Shapes: R rows of this rank, T positions, W = T + 1 tokens of a window."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from common.section import Place as PathText
from common.section import Text
from data.foreign import foreign_tokens

from .base import STRESSES, Place, Setup, Stress, When


@STRESSES.register("foreign_text")
class ForeignText(Stress):
    """Takes the first sequences of a batch from another text: a sudden change of the data."""

    counts = "batches"

    @dataclass(frozen=True, kw_only=True)
    class Options(When):
        paths: Annotated[list[PathText], Field(min_length=1)]
        """Files, folders and globs, as for data.paths; read are at most the first 4 Mi tokens. Keep the files: a run is resumed
        and replayed with what they hold then."""
        text_field: Text = "text"
        """The column or key that holds the text, for .json, .jsonl and .parquet."""
        sequences: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
        """Number of sequences, counted over all ranks; null: all of the batch."""

    @classmethod
    def problems(cls, options: Any, setup: Setup) -> Iterator[tuple[str, str]]:
        """Also more sequences than the batch has."""
        yield from super().problems(options, setup)
        if options.sequences is not None and options.sequences > setup.batch_size:
            yield "sequences", f"{options.sequences} is more than train.batch_size={setup.batch_size}"

    def __init__(self, options: Any, place: Place) -> None:
        super().__init__(options, place)
        keys = (f"stress.{place.number}.paths", f"stress.{place.number}.text_field")
        self._tokens = foreign_tokens(place.store, options.paths, options.text_field, place.sequence_length, keys)

    def batch(self, batch: int, x_RT: Tensor, y_RT: Tensor, *, first_row: int) -> None:
        rows, length = len(x_RT), x_RT.shape[1]
        if self.options.sequences is not None:
            rows = min(self.options.sequences - first_row, rows)
        for row in range(rows):
            start = int(self.random(batch, first_row + row).integers(len(self._tokens) - length))
            window_W = torch.from_numpy(self._tokens[start : start + length + 1])
            x_RT[row], y_RT[row] = window_W[:-1], window_W[1:]

    def describe(self, step: int, batch: int) -> str:
        count, paths = self.options.sequences, self.options.paths
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        return f"{'all' if count is None else count} sequences of batch {batch} taken from {paths[0]}{more}"

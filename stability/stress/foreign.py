"""Stresses of the batch's text. Shapes: R rows of this rank, T positions, W = T + 1 tokens of a window."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from common.errors import InputError, note
from common.section import Place as PathText
from common.section import Text
from data.build import encoded
from data.readers import read_documents
from data.text import find_files

from .base import STRESSES, Place, Setup, Stress, When

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MOST_TOKENS = 1 << 22
"""Of a longer text the first part is enough."""


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
        try:
            self._tokens = self._read()
        except InputError as error:
            raise InputError(*map(self._named, error.problems)) from None
        if len(self._tokens) <= place.sequence_length:
            self.refuse(
                "paths",
                f"{len(self._tokens)} tokens are too few for one sequence of data.sequence_length={place.sequence_length}",
            )

    def _named(self, problem: str) -> str:
        """A line about the corpus's keys as one about the stress's own."""
        return re.sub(r"\bdata\.(paths|text_field)\b", rf"stress.{self.place.number}.\1", problem)

    def _read(self) -> npt.NDArray[np.int64]:
        """The text as tokens of the run's tokenizer, an end-of-text token after each document."""
        store = self.place.store
        tokenizer = cast("PreTrainedTokenizerFast", store.load_tokenizer())
        files, remarks = find_files(self.options.paths, Path(store.path).parent)
        for remark in remarks:
            note(self._named(remark))
        documents = (text for file in files for text in read_documents(file, self.options.text_field) if text.strip())
        found = [document.ids for document in encoded(tokenizer, documents, MOST_TOKENS)]
        return np.concatenate([np.empty(0, np.uint32), *found])[:MOST_TOKENS].astype(np.int64)

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

"""Many lines of a .jsonl file at once: those that have the same keys in the same order, and numbers under them.

A JSON parser finds out about every row anew what it is made of, at 20 to 70 MB/s here. Where it is known, a row is as good as a
line of a table: fields between commas, each of them a key that must be the expected one, and a number. Where the commas of all
lines are, numpy finds; the numbers between them, correctly rounded as Python's are, Arrow reads. Nothing is guessed: a line is
taken only if every field of it is the expected key, a colon and a number (or a spelled-out NaN or infinity); any other line is
left to be read as JSON. What JSON forbids, leading zeros and a point without digits beside it, is read as the number it is; and
-0, to JSON the whole number 0, as the float -0.0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .table import LARGEST, NON_FINITE, Block, Part

if TYPE_CHECKING:
    import pyarrow as pa

MOST_LAYOUTS = 6
"""Kinds of rows in a block: with and without attention, evaluation, both. Each costs some calls and a look at the lines left."""
FEWEST_ALIKE = 8
"""Of fewer lines the parser is as quick."""
LONGEST_TEXT = 2**31 - 1
"""Bytes that Arrow can number. A line that makes a block longer than that is no row."""
COMMA, QUOTE, BRACE = b',"}'

Lines = list[tuple[int, bytes]]
Places = npt.NDArray[np.intp]


def read_alike(block: Block) -> tuple[list[Part], Lines]:
    """The rows of the lines that can be read many at once; and the lines that have to be read singly."""
    text, left = _Text(block), np.arange(block.size)
    parts: list[Part] = []
    rounds = MOST_LAYOUTS if len(block.lines) <= LONGEST_TEXT else 0
    for _ in range(rounds):
        if len(left) < FEWEST_ALIKE:
            break
        layout = _Layout.of(block.line(left[0]))
        part = layout and layout.read(text, left)
        if not part:
            break
        left = left[~np.isin(left, part.lines, assume_unique=True)]
        part.lines += block.first
        parts.append(part)
    return parts, [(block.first + place, block.line(place)) for place in left.tolist()]


class _Text:
    """The bytes of a block's lines, and where their commas are."""

    def __init__(self, block: Block) -> None:
        self.lines = block.lines
        self.bytes = np.frombuffer(block.lines, dtype=np.uint8)
        self.ends = block.ends
        self.starts = np.append(0, block.ends[:-1] + 1)
        self.commas = np.flatnonzero(self.bytes == COMMA).astype(np.int32)
        after = np.searchsorted(self.commas, self.ends)
        self.counts = np.diff(after, prepend=0)
        """Commas of each line."""
        self.first = after - self.counts
        """Of each line, which comma of all is its first."""


class _Layout:
    """Rows of certain keys in a certain order."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys
        starts = [(b" " if place else b"{") + json.dumps(key).encode() + b": " for place, key in enumerate(keys)]
        self.lengths = np.array([len(start) for start in starts], dtype=np.int32)
        """Of what is before the number, for each field."""
        self.skeleton = np.frombuffer(b"".join(starts), dtype=np.uint8)
        """All of that."""

    @classmethod
    def of(cls, line: bytes) -> _Layout | None:
        """The layout of a line; None if it is no row."""
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            return None
        return cls(list(row)) if isinstance(row, dict) and "step" in row else None

    def read(self, text: _Text, left: Places) -> Part | None:
        """The rows among the lines that are left, counted from 0; None if a value in one of them is no number."""
        import pyarrow as pa

        own, bounds = self._bounds(text, left[text.counts[left] == len(self.keys) - 1])
        offsets = pa.py_buffer(np.append(bounds, np.int32(len(text.lines))))
        pieces = pa.Array.from_buffers(pa.binary(), bounds.size, [None, offsets, pa.py_buffer(text.lines)])
        place = np.arange(0, bounds.size, 3, dtype=np.int32)
        keys = np.frombuffer(pieces.take(pa.array(place)).buffers()[2], dtype=np.uint8)
        shape = len(own), len(self.skeleton)
        good = (keys[: math.prod(shape)].reshape(shape) == self.skeleton).all(axis=1)
        if not good.any():
            return None
        quoted = text.bytes[bounds[:, :, 1]] == QUOTE
        return self._part(own[good], pieces, place.reshape(quoted.shape)[good] + 1, quoted[good])

    def _bounds(self, text: _Text, own: Places) -> tuple[Places, npt.NDArray[np.int32]]:
        """Those of the lines that end as a row does, and where in them the three pieces of each field begin.

        The pieces (lines, keys, 3) are all up to the number, the number, and what is before the next field.
        """
        commas = text.commas[text.first[own][:, None] + np.arange(len(self.keys) - 1)]
        bounds = np.empty((len(own), len(self.keys), 3), dtype=np.int32)
        bounds[:, 0, 0], bounds[:, 1:, 0] = text.starts[own], commas + 1
        bounds[:, :, 1] = bounds[:, :, 0] + self.lengths
        bounds[:, :-1, 2], bounds[:, -1, 2] = commas, text.ends[own] - 1
        good = (bounds[:, :, 1] < bounds[:, :, 2]).all(axis=1)
        good &= text.bytes[bounds[:, -1, 2]] == BRACE
        return (own, bounds) if good.all() else (own[good], bounds[good])

    def _part(
        self, lines: Places, pieces: pa.Array, place: npt.NDArray[np.int32], quoted: npt.NDArray[np.bool_]
    ) -> Part | None:
        """The numbers of ``lines``, which pieces they are and which are ``quoted`` (lines, keys); None if one is no number."""
        import pyarrow as pa
        import pyarrow.compute as pc

        def text_at(some: npt.NDArray[np.int32]) -> pa.Array:
            return pieces.take(pa.array(some)).view(pa.string())

        words = pa.array([json.dumps(word) for word in NON_FINITE])
        # Not utf8_lower, to which a dotted capital I is an i: the parser's rows would be read otherwise.
        word = pc.index_in(pc.ascii_lower(text_at(place[quoted])), value_set=words)
        values = np.empty(place.shape)
        try:
            steps = text_at(place[:, self.keys.index("step")]).cast(pa.int64()).to_numpy().copy()
            values[~quoted] = text_at(place[~quoted]).cast(pa.float64()).to_numpy()
        except pa.ArrowInvalid:
            return None
        values[quoted] = 0
        if word.null_count or steps.min() < 0 or not (np.abs(values) <= LARGEST).all():
            return None
        values[quoted] = np.array(list(NON_FINITE.values()))[word.to_numpy()]
        part = Part(lines, steps, {})
        for column, key in enumerate(self.keys):
            if key != "step":
                part.columns[key] = values[:, column].copy()
                if quoted[:, column].any():
                    part.spelled[key] = quoted[:, column].copy()
        return part

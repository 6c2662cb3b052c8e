"""Many lines of a .jsonl file at once: those that have the same keys in the same order, and numbers under them.

A JSON parser finds out about every row anew what it is made of, at 20 to 70 MB/s here. Where it is known, a row is as good as a
line of a table: fields between commas, each of them a key that must be the expected one, and a number. Arrow's reader of such
tables takes the fields apart, and its casts read the numbers, correctly rounded as Python's do. Nothing is guessed: a line is
taken only if every field of it is the expected key, a colon and a number (or a spelled-out NaN or infinity); any other line is
left to be read as JSON. Leading zeros and a point without digits beside it, which JSON forbids, are read as the numbers they are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from .rows import LARGEST, NON_FINITE, Block, Floats, Part, Steps

if TYPE_CHECKING:
    import pyarrow as pa

MOST_LAYOUTS = 6
"""Kinds of rows in a block: with and without attention, evaluation, both. Each costs a pass over the rows that are left."""
FEWEST_ALIKE = 16
"""Of fewer lines the parser is as quick."""
LONGEST_FIELD = 2**20
"""Bytes. A longer one is no number, either."""
TABLE_BLOCK = 2**20
"""Bytes that Arrow takes apart at once: little enough for the cache of a processor. A longer line has to be read singly."""

Lines = list[tuple[int, bytes]]


def read_alike(block: Block) -> tuple[list[Part], Lines]:
    """The rows of the lines that can be read many at once; and the lines that have to be read singly."""
    numbers, text = np.arange(block.first, block.first + block.size), block.lines
    parts: list[Part] = []
    # Arrow's reader ends lines at carriage returns, too; and what it hands back it takes for UTF-8.
    rounds = MOST_LAYOUTS if text.isascii() and b"\r" not in text else 0
    for _ in range(rounds):
        if len(numbers) < FEWEST_ALIKE:
            break
        layout = _Layout.of(text[: text.index(b"\n")])
        found = layout and layout.read(numbers, text)
        if not found:
            break
        parts.append(found.part)
        numbers, text = found.numbers, found.text
    left = zip(numbers.tolist(), text.removesuffix(b"\n").split(b"\n"), strict=True) if len(numbers) else ()
    return parts, list(left)


class _Found(NamedTuple):
    """What one layout has made of some lines."""

    part: Part
    numbers: Steps
    """Of the lines that are laid out otherwise."""
    text: bytes
    """These lines."""


class _Layout:
    """Rows of certain keys in a certain order."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys
        self.starts = [(b" " if place else b"{") + json.dumps(key).encode() + b": " for place, key in enumerate(keys)]

    @classmethod
    def of(cls, line: bytes) -> _Layout | None:
        """The layout of a line; None if it is no row."""
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            return None
        return cls(list(row)) if isinstance(row, dict) and "step" in row else None

    def read(self, numbers: Steps, text: bytes) -> _Found | None:
        """The rows among these lines that are laid out so; None if a value in one of them is more or less than a number."""
        import pyarrow as pa

        others: dict[int, bytes] = {}
        try:
            fields = _fields(text, len(self.keys), others)
        except pa.ArrowInvalid:
            return None
        own = np.delete(np.arange(len(numbers)), list(others))
        if len(own) != len(fields[0]):
            return None
        good = self._good(fields)
        if not good.any():
            return None
        if not good.all():  # as many fields, but other keys
            lines = text.split(b"\n")
            others |= {place: lines[place] for place in own[~good].tolist()}
            fields = [field.filter(pa.array(good)) for field in fields]
        part = self._part(numbers[own[good]], fields)
        if part is None:
            return None
        places = sorted(others)
        return _Found(part, numbers[places], b"".join(others[place] + b"\n" for place in places))

    def _good(self, fields: Sequence[pa.Array]) -> npt.NDArray[np.bool_]:
        """Which rows have the keys of this layout, and an end."""
        import pyarrow.compute as pc

        good = pc.ends_with(fields[-1], pattern=b"}")
        for field, start in zip(fields, self.starts, strict=True):
            good = pc.and_(good, pc.starts_with(field, pattern=start))
        rows: npt.NDArray[np.bool_] = good.to_numpy(zero_copy_only=False)
        return rows

    def _part(self, numbers: Steps, fields: Sequence[pa.Array]) -> Part | None:
        """The numbers of rows that have the keys of this layout; None if a field is something else."""
        import pyarrow as pa
        import pyarrow.compute as pc

        part = Part(numbers, np.zeros(len(numbers), dtype=np.int64), {})
        for place, (key, field, start) in enumerate(zip(self.keys, fields, self.starts, strict=True)):
            end = -1 if place == len(fields) - 1 else LONGEST_FIELD  # without an end, Arrow 26 fails on some fields
            text = pc.binary_slice(field, len(start), end).view(pa.string())
            if key == "step":
                try:
                    part.steps = text.cast(pa.int64()).to_numpy().copy()
                except pa.ArrowInvalid:
                    return None
                continue
            values, spelled = _numbers(text)
            if values is None:
                return None
            part.columns[key] = values
            if spelled is not None:
                part.spelled[key] = spelled
        return part if (part.steps >= 0).all() else None


def _fields(text: bytes, count: int, others: dict[int, bytes]) -> list[pa.Array]:
    """The fields of all lines that have ``count``, an array for each; the other lines go to ``others``, by their place."""
    import pyarrow as pa
    from pyarrow import csv

    def pass_over(row: csv.InvalidRow) -> str:
        others[row.number - 1] = row.text.encode()
        return "skip"

    names = [str(place) for place in range(count)]
    table = csv.read_csv(
        pa.BufferReader(text),
        read_options=csv.ReadOptions(use_threads=False, block_size=TABLE_BLOCK, column_names=names),
        parse_options=csv.ParseOptions(
            quote_char=False, escape_char=False, ignore_empty_lines=False, invalid_row_handler=pass_over
        ),
        convert_options=csv.ConvertOptions(column_types=dict.fromkeys(names, pa.binary()), strings_can_be_null=False),
    )
    return [column.combine_chunks() for column in table.columns]


def _numbers(text: pa.Array) -> tuple[Floats | None, npt.NDArray[np.bool_] | None]:
    """The numbers that strings are, and which of them are spelled out; no numbers if a string is none that a metric can have."""
    import pyarrow as pa
    import pyarrow.compute as pc

    spelled = None
    try:
        # Copied: a few numbers that stay would keep the pages of all of Arrow's scratch memory around them.
        values = text.cast(pa.float64()).to_numpy().copy()
    except pa.ArrowInvalid:
        words = pa.array([json.dumps(word) for word in NON_FINITE])
        place = pc.index_in(text, value_set=words)
        spelled = place.is_valid().to_numpy(zero_copy_only=False)
        try:
            values = pc.if_else(place.is_valid(), "0", text).cast(pa.float64()).to_numpy().copy()
        except pa.ArrowInvalid:
            return None, None
    if not (np.abs(values) <= LARGEST).all():
        return None, None
    if spelled is not None:
        values[spelled] = np.array(list(NON_FINITE.values()))[place.drop_null().to_numpy()]
    return values, spelled

"""Rows of numbers from .jsonl files, as columns: line by line where a row is unusual, a block of lines at once where not.

A run writes the same keys in the same order at every step, but for a few steps with more of them. Those lines are read many at
once (:mod:`record.layouts`); whatever is left over there is read here, as JSON, and refused here if something is wrong with it.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import InputError

Floats = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int64]

NON_FINITE = {sign + word: float(sign + word) for sign in ("", "+", "-") for word in ("nan", "inf", "infinity")}
"""The numbers that strict JSON has no literal for, by the words that stand for them in files, in lower case."""

LAST_STEP = 2**63 - 1
"""Steps are 64-bit numbers."""
LARGEST = 3.5e38
"""A little more than float32, in which metrics are measured, can hold. Differences of larger numbers overflow in figures."""
KEYS_NAMED = 12
"""Keys of a row without a step that are told."""
READERS = 2
"""Threads. More gain little: some of the work is Python's, which one does at a time."""
BLOCK_BYTES = 8 * 2**20
"""Read at once: thousands of lines, so that what is done once a block and column costs little beside them."""


@dataclass(frozen=True)
class Block:
    """Whole lines of a file."""

    first: int
    """Number of the first line, from 1."""
    lines: bytes
    size: int
    """Lines."""
    last: int | None
    """Number of the last line of the file, in the block that ends with it."""

    @cached_property
    def ends(self) -> npt.NDArray[np.intp]:
        """Of each line, the place after its last byte."""
        ends = np.flatnonzero(np.frombuffer(self.lines, dtype=np.uint8) == ord("\n"))
        return ends if len(ends) == self.size else np.append(ends, len(self.lines))

    def line(self, place: int) -> bytes:
        """The line at a place from 0, without its end."""
        return self.lines[self.ends[place - 1] + 1 if place else 0 : self.ends[place]]

    @classmethod
    def of(cls, lines: bytes, first: int = 1, *, last: bool = True) -> Block:
        """The block of some lines, by the number of the first one, and whether they are the last of the file."""
        size = lines.count(b"\n") + (not lines.endswith(b"\n"))
        return cls(first, lines, size, first + size - 1 if last else None)


@dataclass
class Part:
    """Some rows of a file as columns; all arrays have one value for each row."""

    lines: Steps
    """Numbers of the lines, from 1."""
    steps: Steps
    columns: dict[str, Floats]
    """NaN where a row has no value."""
    spelled: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    """Where a row has NaN or an infinity, as opposed to nothing; metrics that have none are left out."""


@dataclass(frozen=True)
class Table:
    """All rows of a file: columns over ascending steps, each step once."""

    steps: Steps
    columns: dict[str, Floats]
    """NaN where a step has no value; see ``non_finite``."""
    non_finite: dict[str, Steps]
    """For each metric that has some, the steps at which NaN or an infinity was written (as opposed to nothing)."""

    def written(self, key: str) -> npt.NDArray[np.bool_]:
        """At which of the steps ``key`` was written, as NaN or an infinity too."""
        there: npt.NDArray[np.bool_] = ~np.isnan(self.columns[key])
        if key in self.non_finite:
            there[np.searchsorted(self.steps, self.non_finite[key])] = True
        return there


def read_table(path: Path, *, foreign: bool = False) -> Table:
    """Read a file of rows; several rows of one step are one, a torn last line is left out.

    Many logs have training and evaluation of a step in two rows; a run that was killed may have a step twice. So of each key
    the last row that has a value for it counts: NaN is a value, null is none.

    A ``foreign`` file may have values that are no numbers, which are passed over, and steps such as 5.0. Raises
    :class:`InputError` naming file and line or step for a torn line that is not the last, a row without a whole step, a
    number that no metric can have and, unless ``foreign``, a value that is no number; and for a file without rows.
    """
    parts: list[Part] = []
    for block, alike, left in _read_ahead(path):
        rows = [(number, row) for number, line in left if (row := _object(path, number, line, block.last)) is not None]
        parts += [*alike, _part(path, rows, foreign)] if rows else alike
    if not parts:
        raise InputError(f"{path} has no complete row; wait until the run has taken a step, or start it again")
    return _joined(parts)


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) for each line; a last line that does not parse is torn and left out."""
    for block in _blocks(path):
        for place in range(block.size):
            number = block.first + place
            row = _object(path, number, block.line(place), block.last)
            if row is not None:
                yield number, row


def refuse_special(path: Path) -> None:
    """A pipe or a device in a file's place would be waited for, or read, without end."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a file; restore it or start the run again")


# ----------------------------------------------------------------------------------------------------------- line by line


def _blocks(path: Path) -> Iterator[Block]:
    """The lines of a file, some MiB at once."""
    refuse_special(path)
    first, held = 1, b""
    try:
        with path.open("rb") as file:
            while lines := file.read(BLOCK_BYTES) + file.readline():
                if held:
                    block = Block.of(held, first, last=False)
                    yield block
                    first += block.size
                held = lines
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; the run is half-written: start it again, or name another run") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    if held:
        yield Block.of(held, first)


def _read_ahead(path: Path) -> Iterator[tuple[Block, list[Part], list[tuple[int, bytes]]]]:
    """The blocks of a file, the rows in each that can be read at once, and the lines that are left."""
    from .layouts import read_alike

    # Much of the work is Arrow's and numpy's, which threads do at the same time.
    with ThreadPoolExecutor(READERS) as pool:
        ahead: deque[tuple[Block, Future[tuple[list[Part], list[tuple[int, bytes]]]]]] = deque()
        for block in _blocks(path):
            ahead.append((block, pool.submit(read_alike, block)))
            if len(ahead) > READERS:
                done, alike = ahead.popleft()
                yield done, *alike.result()
        for done, alike in ahead:
            yield done, *alike.result()


def _object(path: Path, number: int, line: bytes, last: int | None) -> dict[str, Any] | None:
    """The row of a line; None for a blank one, and for one that does not parse if it is the ``last`` of the file."""
    if not line.strip():
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if isinstance(row, dict):
        return row
    if number == last:
        return None
    raise InputError(f"{path} line {number} is torn or not a JSON object; remove that line")


def _part(path: Path, rows: Sequence[tuple[int, dict[str, Any]]], foreign: bool) -> Part:
    """Numbered rows as columns; see :func:`read_table`."""
    part = Part(np.array([number for number, _ in rows], dtype=np.int64), np.zeros(len(rows), dtype=np.int64), {})
    for place, (number, row) in enumerate(rows):
        part.steps[place] = step = _step(path, number, row, foreign)
        for name, value in row.items():
            found = None if name == "step" else number_of(value)
            if name == "step" or (found is None and foreign):
                continue
            if found is None and value is not None:
                told = f"{name} is {_shown(value)}, not a number"
                raise InputError(f"{path} step {step}: {told}; correct or remove the row")
            if name not in part.columns:
                part.columns[name] = np.full(len(rows), np.nan)
            if found is None:
                continue
            if LARGEST < abs(found) < math.inf:
                told = f"{name} is {found:g}, more than a float32 can hold"
                raise InputError(f"{path} step {step}: {told}; correct or remove the row")
            part.columns[name][place] = found
            if not math.isfinite(found):
                part.spelled.setdefault(name, np.zeros(len(rows), dtype=bool))[place] = True
    return part


def _step(path: Path, number: int, row: dict[str, Any], foreign: bool) -> int:
    step = row.get("step")
    whole = type(step) is int or (foreign and isinstance(step, float) and step.is_integer())
    if step is not None and whole and 0 <= step <= LAST_STEP:
        return int(step)
    told, mend = f"has {_shown(step)} under 'step'", "write a whole number there"
    if "step" not in row:
        told, mend = "has no 'step'", "number the rows"
        if row:
            told += f", only {', '.join(list(row)[:KEYS_NAMED])}"
            mend = "rename the key that counts the steps to step"
    raise InputError(f"{path} line {number} {told}; {mend}, or remove the line")


def _shown(value: Any) -> str:
    """A value of a row for an error; what may be nested deeper than can be written is told by its kind."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return json.dumps(value)[:80]


def number_of(value: Any) -> float | None:
    """The number that ``value`` is or spells; None for anything else, and for an integer beyond any float."""
    if isinstance(value, str):
        return NON_FINITE.get(value.lower())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of 400 digits
        return None


# --------------------------------------------------------------------------------------------------------------- joining


def _joined(parts: Sequence[Part]) -> Table:
    """One table of all parts, whose columns are taken out of them on the way: a long run is in memory once."""
    steps, place = np.unique(np.concatenate([part.steps for part in parts]), return_inverse=True)
    places = np.split(place, np.cumsum([len(part.steps) for part in parts])[:-1])
    columns, non_finite = {}, {}
    for name in dict.fromkeys(name for part in parts for name in part.columns):
        column, spelled = np.full(len(steps), np.nan), np.zeros(len(steps), dtype=bool)
        line = np.zeros(len(steps), dtype=np.int64)  # that the value of each step comes from
        for part, places_of_part in zip(parts, places, strict=True):
            if name not in part.columns:
                continue
            values = part.columns.pop(name)
            odd = part.spelled.get(name, np.zeros(len(values), dtype=bool))
            # The lines of a part ascend, and of a step that is in it twice the last assignment stays; those of two parts mix.
            newer = (odd | ~np.isnan(values)) & (part.lines > line[places_of_part])
            own = places_of_part[newer]
            column[own], spelled[own], line[own] = values[newer], odd[newer], part.lines[newer]
        columns[name] = column
        if spelled.any():
            non_finite[name] = steps[spelled]
    return Table(steps, columns, non_finite)

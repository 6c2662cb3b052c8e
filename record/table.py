"""Rows of numbers from .jsonl files, as columns."""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from common.errors import InputError

Row = dict[str, Any]
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
BLOCK_BYTES = 2**17
"""Read at once: hundreds of lines, whose objects fit in a core's cache. Eight times as much takes half as long again."""


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
    rows = _Rows(path, foreign)
    for numbers, objects in _objects(path):
        rows.add(numbers, objects)
    return rows.table()


def json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    """(line number from 1, object) for each line; a last line that does not parse is torn and left out."""
    for numbers, objects in _objects(path, json.loads):  # orjson makes floats of integers beyond 64 bits
        yield from zip(numbers, objects, strict=True)


def refuse_special(path: Path) -> None:
    """A pipe or a device in a file's place would be waited for, or read, without end."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a file; restore it or start the run again")


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


# ----------------------------------------------------------------------------------------------------------------- lines


def _objects(path: Path, parse: Callable[[bytes], Any] = orjson.loads) -> Iterator[tuple[Sequence[int], list[Row]]]:
    """The lines of a file, a block at once: their numbers and their objects."""
    first = 1
    for lines, ended in _blocks(path):
        numbers: Sequence[int] = range(first, first + len(lines))
        first += len(lines)
        try:
            rows = list(map(parse, lines))
        except (ValueError, RecursionError):
            rows = []
        if set(map(type, rows)) != {dict}:
            found = {number: _parsed(line) for number, line in zip(numbers, lines, strict=True) if line.strip()}
            torn = [number for number, row in found.items() if not isinstance(row, dict)]
            if torn and not (ended and torn == [numbers[-1]]):
                raise InputError(f"{path} line {torn[0]} is torn or not a JSON object; remove that line")
            numbers = [number for number in found if number not in torn]
            rows = [found[number] for number in numbers]
        yield numbers, rows


def _blocks(path: Path) -> Iterator[tuple[list[bytes], bool]]:
    """Some lines of a file at once, and whether it ends with them."""
    refuse_special(path)
    try:
        with path.open("rb") as file:
            while text := file.read(BLOCK_BYTES) + file.readline():
                yield text.removesuffix(b"\n").split(b"\n"), not file.peek(1)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; the run is half-written: start it again, or name another run") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error


def _parsed(line: bytes) -> Any:
    """What a line says; None if it is no JSON, not even with what Python writes beyond it: NaN, integers of 400 digits."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


# ------------------------------------------------------------------------------------------------------------------ rows


@dataclass
class _Alike:
    """Rows that have values for the same keys."""

    places: array[int] = field(default_factory=lambda: array("q"))
    """Of each, which of all rows of the file it is, from 0."""
    values: bytearray = field(default_factory=bytearray)
    """Row by row, as float64."""


class _Rows:
    """The rows of a file so far, by their keys: a run writes the same ones at every step, but for a few steps with more."""

    def __init__(self, path: Path, foreign: bool) -> None:
        self.path = path
        self.foreign = foreign
        self.steps = array("q")
        self.alike: dict[tuple[str, ...], _Alike] = {}
        self.names: dict[str, None] = {}
        """Of all columns, in the order in which they come in the file."""

    def add(self, numbers: Sequence[int], rows: Sequence[Row]) -> None:
        """Add rows, by the numbers of their lines. Raises :class:`InputError` for one that :func:`read_table` refuses."""
        start = len(self.steps)
        self.steps += self._steps_of(numbers, rows)
        packed = _packed(rows, start)
        if packed is None:
            packed = _packed(list(map(self._numbers, rows, self.steps[start:])), start) or {}
        for keys, (places, values) in packed.items():
            if keys not in self.alike:
                self.alike[keys] = _Alike()
                self.names |= dict.fromkeys(key for key in keys if key != "step")
            self.alike[keys].places.fromlist(places)
            self.alike[keys].values += values

    def _steps_of(self, numbers: Sequence[int], rows: Sequence[Row]) -> array[int]:
        steps: list[Any] = [row.get("step") for row in rows]
        if set(map(type, steps)) == {int} and min(steps) >= 0 and max(steps) <= LAST_STEP:
            return array("q", steps)
        return array("q", [_step(self.path, *row, self.foreign) for row in zip(numbers, rows, strict=True)])

    def _numbers(self, row: Row, step: int) -> Row:
        """What of a row is a number; null is nothing, and so is any other value in a foreign file."""
        numbers = {}
        for name, value in row.items():
            found = value if type(value) is float else number_of(value)
            if name == "step" or (found is None and self.foreign):
                continue
            self.names.setdefault(name)
            if found is not None:
                numbers[name] = found
            elif value is not None:
                told = f"{name} is {_shown(value)}, not a number"
                raise InputError(f"{self.path} step {step}: {told}; correct or remove the row")
        return numbers

    def table(self) -> Table:
        """Columns of all rows, in which the rows of a step are one."""
        if not self.steps:
            raise InputError(f"{self.path} has no complete row; wait until the run has taken a step, or start it again")
        written = np.frombuffer(self.steps, dtype=np.int64)
        steps, place = np.unique(written, return_inverse=True)
        ascending = len(steps) == len(written) and np.array_equal(steps, written)
        columns, non_finite = {}, {}
        for name in self.names:
            there, values = self._column(name)
            infinite = ~np.isfinite(values)
            huge = np.flatnonzero((np.abs(values) > LARGEST) & ~infinite)
            if huge.size:
                told = f"{name} is {values[huge[0]]:g}, more than a float32 can hold"
                raise InputError(f"{self.path} step {written[huge[0]]}: {told}; correct or remove the row")
            odd = infinite & there
            if not ascending:  # of a step that was written twice, the last assignment stays
                own, rows, odd_rows = place[there], values, odd
                values, odd = np.full(len(steps), np.nan), np.zeros(len(steps), dtype=bool)
                values[own], odd[own] = rows[there], odd_rows[there]
            columns[name] = values
            if odd.any():
                non_finite[name] = steps[odd]
        return Table(steps, columns, non_finite)

    def _column(self, name: str) -> tuple[npt.NDArray[np.bool_], Floats]:
        """For each row of the file, whether it has a value for ``name``, and which."""
        there, values = np.zeros(len(self.steps), dtype=bool), np.full(len(self.steps), np.nan)
        for keys, alike in self.alike.items():
            if name in keys:
                places = np.frombuffer(alike.places, dtype=np.int64)
                there[places] = True
                values[places] = np.frombuffer(alike.values)[keys.index(name) :: len(keys)]
        return there, values


def _packed(rows: Sequence[Row], start: int) -> dict[tuple[str, ...], tuple[list[int], bytes]] | None:
    """Places (the first is ``start``) and values of the rows, by their keys; None if a value is no number that a float holds."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for place, row in enumerate(rows, start):
        alike.setdefault(tuple(row), []).append(place)
    packed = {}
    for keys, places in alike.items():
        values = list(chain.from_iterable([rows[place - start].values() for place in places]))
        kinds = set(map(type, values))
        if str in kinds:
            values = [NON_FINITE.get(value.lower(), value) if type(value) is str else value for value in values]
            kinds = set(map(type, values))
        if not kinds <= {int, float}:
            return None
        try:
            packed[keys] = places, struct.pack(f"{len(values)}d", *values)
        except (struct.error, OverflowError):  # an integer of 400 digits
            return None
    return packed


def _step(path: Path, number: int, row: Row, foreign: bool) -> int:
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

"""Read .jsonl files of numeric rows into columns."""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
"""Numbers that strict JSON cannot express, by the lower-case words used for them in files."""

LAST_STEP = 2**63 - 1
"""Steps are 64-bit integers."""
LARGEST = 3.5e38
"""A little more than float32, in which metrics are measured, can hold. Differences of larger numbers overflow in figures."""
KEYS_NAMED = 12
"""Most keys listed for a row without a step."""
BLOCK_BYTES = 2**17
"""Bytes read at once: hundreds of lines, whose objects fit a core's cache. Eight times as much takes 1.5 times as long."""


@dataclass(frozen=True)
class Table:
    """All rows of a file as columns over ascending steps, each step once."""

    steps: Steps
    columns: dict[str, Floats]
    """NaN where a step has no value; see ``non_finite``."""
    non_finite: dict[str, Steps]
    """For metrics that have some: the steps at which NaN or an infinity was written (rather than nothing)."""

    def written(self, key: str) -> npt.NDArray[np.bool_]:
        """Mask of the steps at which ``key`` was written, NaN and infinities included."""
        there: npt.NDArray[np.bool_] = ~np.isnan(self.columns[key])
        if key in self.non_finite:
            there[np.searchsorted(self.steps, self.non_finite[key])] = True
        return there


def read_table(path: Path, *, foreign: bool = False) -> Table:
    """Read a file of rows; rows of the same step are merged, a torn last line is skipped.

    Many logs have training and evaluation metrics of a step in two rows, and a run that was killed may repeat a step: for
    each key the last row with a value counts (NaN is a value, null is not).

    In a ``foreign`` file non-numeric values are ignored and steps such as 5.0 accepted. Raises :class:`InputError` naming
    file and line or step for a torn line that is not the last, a row without an integer step, a number no metric can have,
    a non-numeric value (unless ``foreign``), and a file without rows.
    """
    rows = _Rows(path, foreign)
    for numbers, objects in _objects(path):
        rows.add(numbers, objects)
    return rows.table()


def joined(first: Table, then: Table) -> Table:
    """The rows of two tables, of which the second begins after the first has ended."""
    columns = {}
    for key in first.columns | then.columns:
        parts = [t.columns.get(key, np.full(len(t.steps), np.nan)) for t in (first, then)]
        columns[key] = np.concatenate(parts)
    steps = np.concatenate([first.steps, then.steps])
    return Table(steps, columns, steps_joined(first.non_finite, then.non_finite))


def steps_joined(first: dict[str, Steps], then: dict[str, Steps]) -> dict[str, Steps]:
    """The steps of both, for each metric."""
    none = np.empty(0, dtype=np.int64)
    return {key: np.append(first.get(key, none), then.get(key, none)) for key in first | then}


def json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    """(line number from 1, object) for each line; an unparsable last line is torn and skipped."""
    for numbers, objects in _objects(path, json.loads):  # orjson makes floats of integers beyond 64 bits
        yield from zip(numbers, objects, strict=True)


def refuse_special(path: Path) -> None:
    """Raise InputError for a pipe or a device, which could block or never end."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a file; restore it or start the run again")


def number_of(value: Any) -> float | None:
    """The number that ``value`` is or spells; None for anything else, and for an integer too large for a float."""
    if isinstance(value, str):
        return NON_FINITE.get(value.lower())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of 400 digits
        return None


def _objects(path: Path, parse: Callable[[bytes], Any] = orjson.loads) -> Iterator[tuple[Sequence[int], list[Row]]]:
    """The lines of a file, block by block: their numbers and objects."""
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
    """Blocks of lines of a file, and whether each is the last."""
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
    """The value of a line as Python's json reads it (NaN, integers of 400 digits); None if it is not JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


class _Rows:
    """The rows so far, grouped by keys: a run writes the same keys at nearly every step."""

    def __init__(self, path: Path, foreign: bool) -> None:
        self.path = path
        self.foreign = foreign
        self.steps = array("q")
        self.alike: dict[tuple[str, ...], tuple[array[int], bytearray]] = {}
        """By keys: index of each row among all rows of the file, from 0; and the values, row by row, as float64."""
        self.names: dict[str, None] = {}
        """Of all columns, in order of appearance."""

    def add(self, numbers: Sequence[int], rows: Sequence[Row]) -> None:
        """Add rows with their line numbers. Raises :class:`InputError` for a row that :func:`read_table` refuses."""
        start = len(self.steps)
        self.steps += self._steps_of(numbers, rows)
        packed = _packed(rows, start)
        if packed is None:
            packed = _packed(list(map(self._numbers, rows, self.steps[start:])), start) or {}
        for keys, (places, values) in packed.items():
            if keys not in self.alike:
                self.alike[keys] = array("q"), bytearray()
                self.names |= dict.fromkeys(key for key in keys if key != "step")
            known_places, known_values = self.alike[keys]
            known_places.fromlist(places)
            known_values += values

    def _steps_of(self, numbers: Sequence[int], rows: Sequence[Row]) -> array[int]:
        steps: list[Any] = [row.get("step") for row in rows]
        if set(map(type, steps)) == {int} and min(steps) >= 0 and max(steps) <= LAST_STEP:
            return array("q", steps)
        return array("q", [_step(self.path, *row, self.foreign) for row in zip(numbers, rows, strict=True)])

    def _numbers(self, row: Row, step: int) -> Row:
        """The numbers of a row; null means no value, and so does any non-number in a foreign file."""
        numbers = {}
        for name, value in row.items():
            found = value if type(value) is float else number_of(value)
            if name == "step" or (found is None and self.foreign):
                continue
            self.names.setdefault(name)
            if found is not None:
                numbers[name] = found
            elif value is not None:
                problem = f"{name} is {_shown(value)}, not a number"
                raise InputError(f"{self.path} step {step}: {problem}; correct or remove the row")
        return numbers

    def table(self) -> Table:
        """Columns of all rows, with the rows of a step merged."""
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
                problem = f"{name} is {values[huge[0]]:g}, more than a float32 can hold"
                raise InputError(f"{self.path} step {written[huge[0]]}: {problem}; correct or remove the row")
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
        """Mask of the rows that have a value for ``name``, and the values."""
        there, values = np.zeros(len(self.steps), dtype=bool), np.full(len(self.steps), np.nan)
        for keys, (known_places, known_values) in self.alike.items():
            if name in keys:
                places = np.frombuffer(known_places, dtype=np.int64)
                there[places] = True
                values[places] = np.frombuffer(known_values)[keys.index(name) :: len(keys)]
        return there, values


def _packed(rows: Sequence[Row], start: int) -> dict[tuple[str, ...], tuple[list[int], bytes]] | None:
    """Indices (from ``start``) and packed values of the rows, by their keys; None if a value is not a number a float can hold."""
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
    problem, remedy = f"has {_shown(step)} under 'step'", "write a whole number there"
    if "step" not in row:
        problem, remedy = "has no 'step'", "number the rows"
        if row:
            problem += f", only {', '.join(list(row)[:KEYS_NAMED])}"
            remedy = "rename the key that counts the steps to step"
    raise InputError(f"{path} line {number} {problem}; {remedy}, or remove the line")


def _shown(value: Any) -> str:
    """A value quoted in an error; lists and objects, which may be nested too deeply to write, only by type."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return json.dumps(value)[:80]

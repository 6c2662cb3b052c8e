"""Read .jsonl files of numeric rows into columns."""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
BLOCK_BYTES = 2**16
"""Bytes read at once: tens of lines, whose objects fit a core's cache. Eight times as much takes 1.6 times as long."""


@dataclass(frozen=True)
class Table:
    """All rows of a file as columns over ascending steps, each step once."""

    steps: Steps
    columns: Mapping[str, Floats]
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
    for key in dict.fromkeys([*first.columns, *then.columns]):
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
    first = 1
    for text, ended in _blocks(path):  # Python's json, since orjson makes floats of integers beyond 64 bits
        yield from _lines(path, text, ended, first).items()
        first += text.count(b"\n") + 1


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


def _objects(path: Path) -> Iterator[tuple[Sequence[int], list[Row]]]:
    """The lines of a file, block by block: their numbers and objects."""
    first = 1
    for text, ended in _blocks(path):
        rows = _at_once(text)
        count = len(rows) or text.count(b"\n") + 1
        numbers: Sequence[int] = range(first, first + count)
        if not rows:
            found = _lines(path, text, ended, first)
            numbers, rows = list(found), list(found.values())
        yield numbers, rows
        first += count


def _at_once(text: bytes) -> list[Row]:
    """The objects of lines, parsed as one array; none unless it is certain that each line is an object of its own.

    It is where every brace opens an object of the array, and every line end is followed by one.
    """
    if not text.startswith(b"{"):
        return []
    characters = np.frombuffer(text, dtype=np.uint8)
    ends, braces = characters[:-1] == ord("\n"), characters[1:] == ord("{")
    count = int(np.count_nonzero(ends))
    if not np.count_nonzero(ends & braces) == np.count_nonzero(braces) == count:
        return []
    try:
        rows: list[Row] = orjson.loads(b"[%b]" % text.replace(b"\n", b","))
    except ValueError:
        return []
    return rows if len(rows) == count + 1 and set(map(type, rows)) == {dict} else []


def _lines(path: Path, text: bytes, ended: bool, first: int) -> dict[int, Row]:
    """The objects of lines by line number, each parsed by itself. Blank lines are left out, and a torn one at the end."""
    lines = text.split(b"\n")
    found = {number: _parsed(line) for number, line in enumerate(lines, first) if line.strip()}
    torn = [number for number, row in found.items() if not isinstance(row, dict)]
    if torn and not (ended and torn == [first + len(lines) - 1]):
        raise InputError(f"{path} line {torn[0]} is torn or not a JSON object; remove that line")
    return {number: row for number, row in found.items() if number not in torn}


def _blocks(path: Path) -> Iterator[tuple[bytes, bool]]:
    """Blocks of whole lines of a file, and whether each is the last."""
    refuse_special(path)
    try:
        with path.open("rb") as file:
            while text := file.read(BLOCK_BYTES) + file.readline():
                yield text.removesuffix(b"\n"), not file.peek(1)
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


class _Columns(Mapping[str, Floats]):
    """Columns that are made when they are first asked for: a command needs few of them."""

    def __init__(self, names: Iterable[str], make: Callable[[str], Floats]) -> None:
        self._made: dict[str, Floats | None] = dict.fromkeys(names)
        self._make = make

    def __getitem__(self, name: str) -> Floats:
        column = self._made[name]
        if column is None:
            column = self._made[name] = self._make(name)
        return column

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


class _Rows:
    """The rows so far."""

    def __init__(self, path: Path, foreign: bool) -> None:
        self.path = path
        self.foreign = foreign
        self.steps = array("q")
        self.kinds: dict[tuple[str, ...], int] = {}
        """A number for each sequence of keys: a run writes the same keys at nearly every step."""
        self.kind_n = array("q")
        """Of each row, of which there are N."""
        self.values = bytearray()
        """Of all rows, one after another, as float64."""
        self.names: dict[str, None] = {}
        """Of all columns, in order of appearance."""

    def add(self, numbers: Sequence[int], rows: Sequence[Row]) -> None:
        """Add rows with their line numbers. Raises :class:`InputError` for a row that :func:`read_table` refuses."""
        start = len(self.steps)
        self.steps += self._steps_of(numbers, rows)
        packed = _packed(rows)
        if packed is None:
            rows = list(map(self._numbers, rows, self.steps[start:]))
            packed = _packed(rows) or b""
        self.values += packed
        keys = list(map(tuple, rows))
        for new in [each for each in dict.fromkeys(keys) if each not in self.kinds]:
            self.kinds[new] = len(self.kinds)
            self.names |= dict.fromkeys(key for key in new if key != "step")
        self.kind_n.fromlist(list(map(self.kinds.__getitem__, keys)))

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
        values, kind_n = np.frombuffer(self.values), np.frombuffer(self.kind_n, dtype=np.int64)
        lengths_n = np.array(list(map(len, self.kinds)))[kind_n]
        starts_n = np.cumsum(lengths_n) - lengths_n
        kinds = [(keys, np.flatnonzero(kind_n == kind)) for keys, kind in self.kinds.items()]

        def column(name: str) -> tuple[Floats, npt.NDArray[np.bool_]]:
            """The values of all steps, and at which of them one is written that is not finite."""
            in_row, there = np.full(len(written), np.nan), np.zeros(len(written), dtype=bool)
            for keys, rows in kinds:
                if name in keys:
                    in_row[rows], there[rows] = values[starts_n[rows] + keys.index(name)], True
            self._refuse_huge(name, in_row)
            odd_in_row = ~np.isfinite(in_row) & there
            if ascending:
                return in_row, odd_in_row
            own = place[there]  # of a step that was written twice, the last assignment stays
            merged, odd = np.full(len(steps), np.nan), np.zeros(len(steps), dtype=bool)
            merged[own], odd[own] = in_row[there], odd_in_row[there]
            return merged, odd

        suspects = self._odd(values, starts_n)
        looked_at = {name: column(name)[1] for name in self.names if name in suspects}
        non_finite = {name: steps[odd] for name, odd in looked_at.items() if odd.any()}
        return Table(steps, _Columns(self.names, lambda name: column(name)[0]), non_finite)

    def _odd(self, values: Floats, starts_n: Steps) -> set[str]:
        """The columns with a value that is not finite or too large."""
        parts = range(0, len(values), BLOCK_BYTES)
        odd = [np.flatnonzero(~(np.abs(values[part : part + BLOCK_BYTES]) <= LARGEST)) + part for part in parts]
        places = np.concatenate([np.empty(0, dtype=np.int64), *odd])
        rows = np.searchsorted(starts_n, places, side="right") - 1
        keys, kind_n = list(self.kinds), np.frombuffer(self.kind_n, dtype=np.int64)
        pairs = set(zip(kind_n[rows].tolist(), (places - starts_n[rows]).tolist(), strict=True))
        return {keys[kind][place] for kind, place in pairs}

    def _refuse_huge(self, name: str, in_row: Floats) -> None:
        huge = np.flatnonzero((np.abs(in_row) > LARGEST) & np.isfinite(in_row))
        if huge.size:
            problem = f"{name} is {in_row[huge[0]]:g}, more than a float32 can hold"
            raise InputError(f"{self.path} step {self.steps[huge[0]]}: {problem}; correct or remove the row")


def _packed(rows: Sequence[Row]) -> bytes | None:
    """The values of rows, packed as float64; None if one is not a number that a float can hold."""
    values = list(chain.from_iterable([row.values() for row in rows]))
    packed = _floats(values)
    if packed is None:
        packed = _floats([NON_FINITE.get(value.lower(), value) if type(value) is str else value for value in values])
    return packed


def _floats(values: list[Any]) -> bytes | None:
    """The values packed as float64; None unless all are numbers that a float can hold."""
    try:
        packed = struct.pack(f"{len(values)}d", *values)
    except (struct.error, OverflowError):  # no number; an integer of 400 digits
        return None
    floats = np.frombuffer(packed)
    perhaps = np.flatnonzero((floats == 0) | (floats == 1))  # false and true become these
    return None if bool in map(type, map(values.__getitem__, perhaps.tolist())) else packed


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

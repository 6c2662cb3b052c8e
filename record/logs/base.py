"""The base class of log formats, the rows that they read, and the log that is made of them.

A format is one file with a class registered in :data:`FORMATS` (kinds.py imports them all). It says what a file lacks to be
of its format, and reads the file into :class:`Rows`, as logged. What is the step, which column is the loss, and whether the
log goes back (columns.py, branches.py) is decided for all formats alike.
"""

from __future__ import annotations

import contextlib
import re
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from common.errors import InputError
from common.registry import Registry
from record.table import NON_FINITE, Table

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]
Column = tuple[Places, Floats]
"""The rows, counted from 0, that have a value, ascending; and the values."""

FORMATS = Registry("log format")
HEAD_BYTES = 2**16
"""Bytes of a file by which its format is recognised."""
_THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d*)?")
_PLAIN = {int, float}
_VALIDATION_ROWS = ("val", "valid", "validation", "eval", "evaluation", "test", "dev")
_SPLIT_NAMES = ("split", "phase", "mode", "stage", "type", "kind", "event", "prefix", "subset")


@dataclass
class Rows:
    """The rows of one run in the order in which they were logged."""

    name: str = ""
    """Of the run, where the file names it."""
    count: int = 0
    columns: dict[str, Column] = field(default_factory=dict)
    first_counts: bool = False
    """Of several values of a step, the first counts (lines of several ranks) rather than the last."""
    remarks: list[str] = field(default_factory=list)
    """What was passed over."""


class RowsBuilder:
    """Collects rows one by one, grouped by their names: most rows of a log have the same."""

    def __init__(self) -> None:
        self.count = 0
        self._alike: dict[tuple[str, ...], tuple[array[int], array[float]]] = {}
        """By names: the indices of the rows, and their values row by row."""

    def add(self, row: Mapping[str, float]) -> None:
        """Add a row with at least one value. Raises OverflowError, and adds nothing, for an integer too large for a float."""
        names = tuple(row)
        values = array("d", row.values())
        if names not in self._alike:
            self._alike[names] = array("q"), array("d")
        places, known = self._alike[names]
        places.append(self.count)
        known.extend(values)
        self.count += 1

    def rows(self, name: str = "", first_counts: bool = False, remarks: Sequence[str] = ()) -> Rows:
        """All rows so far."""
        columns = {key: self._column(key) for names in self._alike for key in names}
        return Rows(name, self.count, columns, first_counts, list(remarks))

    def _column(self, key: str) -> Column:
        groups = [
            (np.frombuffer(places, dtype=np.int64), np.frombuffer(values).reshape(-1, len(names))[:, names.index(key)])
            for names, (places, values) in self._alike.items()
            if key in names
        ]
        places, values = (np.concatenate(parts) for parts in zip(*groups, strict=True))
        order = np.argsort(places, kind="stable")
        return places[order], values[order]


class Format(ABC):
    """A format of training logs."""

    kind: ClassVar[str]
    title: ClassVar[str]
    """As it is printed."""
    order: ClassVar[int] = 0
    """Formats of a higher order are tried later: those for which a whole file is searched."""

    @abstractmethod
    def lacks(self, path: Path, head: bytes) -> str:
        """What the file, which begins with ``head``, lacks to be of this format; empty for a file that is."""

    @abstractmethod
    def read(self, path: Path) -> list[Rows]:
        """The runs in the file, those without a value left out. Raises :class:`InputError`, one line, for a file that
        :meth:`lacks` nothing and cannot be read."""

    def title_of(self, path: Path, head: bytes) -> str:
        """The title for this file, where a format knows several tools."""
        return self.title


@dataclass(frozen=True)
class Abandoned:
    """Rows that were overtaken when the log went back: ``from_step`` was the last step before, ``to_step`` the first after."""

    from_step: int
    to_step: int
    table: Table
    branch: Table
    """The rows that had been kept until then, these included: the run as it was logged up to ``from_step``."""


@dataclass(frozen=True)
class Log:
    """One run of a log: what was kept in the end, what was abandoned, and which column has which role."""

    path: Path
    label: str
    format: str
    """Its title."""
    table: Table
    roles: dict[str, str]
    """Column by the key of its role (columns.ROLES)."""
    abandoned: tuple[Abandoned, ...] = ()
    remarks: tuple[str, ...] = ()


def number_in(value: Any) -> float | None:
    """The number that a logged value is or spells: 5, "5", "1,234.5", "nan", "-inf". None for anything else."""
    if type(value) is float:
        return value
    if isinstance(value, bool):
        return None
    try:
        if isinstance(value, int):
            return float(value)
        return number_of_text(value) if isinstance(value, str) else None
    except OverflowError:  # an integer of 400 digits
        return None


def number_of_text(text: str) -> float | None:
    """The number that ``text`` spells, thousands separated by commas or not; None for other text."""
    word = text.strip()
    if not word or not (word[0] in "+-.nNiI" or word[0].isdigit()):
        return None
    if (known := NON_FINITE.get(word.lower())) is not None:
        return known
    if "_" in word or not word.isascii():
        return None
    if "," in word:
        if not _THOUSANDS.fullmatch(word):
            return None
        word = word.replace(",", "")
    try:
        return float(word)
    except ValueError:
        return None


def flat(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested objects, by the keys on the way to them joined by slashes."""
    for key, value in row.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


def add_object(builder: RowsBuilder, row: Mapping[str, Any]) -> None:
    """Add the numbers of a JSON object. A row that says that it is of validation ("split": "val") has its own columns."""
    if row and set(map(type, row.values())) <= _PLAIN:
        with contextlib.suppress(OverflowError):
            builder.add(row)
            return
    prefix = validation_prefix(row)
    numbers = {}
    for name, value in flat(row) if dict in map(type, row.values()) else row.items():
        found = value if type(value) is float else number_in(value)
        if found is not None:
            numbers[name] = found
    if prefix:
        numbers = {validation_name(name): value for name, value in numbers.items()}
    if numbers:
        builder.add(numbers)


def validation_prefix(row: Mapping[str, Any]) -> bool:
    """Whether the row says that its numbers are of validation."""
    return any(isinstance(row.get(n), str) and row[n].lower() in _VALIDATION_ROWS for n in _SPLIT_NAMES if n in row)


def validation_name(name: str) -> str:
    """The name of a column in rows of validation; the step's stays."""
    return name if name.rpartition("/")[2].lower().endswith(("step", "iter", "iteration")) else f"val/{name}"


def open_error(path: Path, error: OSError) -> InputError:
    """What to tell of a file that the system refuses."""
    return InputError(f"{path} cannot be read ({error.strerror})")

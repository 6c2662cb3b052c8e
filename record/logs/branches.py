"""Logs whose steps go back: a restart or a rollback, after which steps are logged again. Both branches are kept.

Not every smaller step is a return. It is none if what follows has only columns that the rows before it lack (an evaluation that
ends late), repeats them to the last digit (a block written twice), or is a single row behind others (a rank that writes late).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from record.table import LARGEST, Steps, Table

from .base import Abandoned, Column, Floats, Places, Rows

_OFF_GRID = 3
"""Rows at steps that were not logged before from which on they are taken for another branch."""


@dataclass(frozen=True)
class Branches:
    """What was kept in the end, and the branches that were left, in the order in which they were."""

    kept: Table
    abandoned: tuple[Abandoned, ...]


def split(steps: Steps, rows: Rows, step_column: str) -> Branches:
    """The branches of rows with these steps, one for each row. Values beyond float32 count as infinite."""
    columns = {name: _limited(column) for name, column in rows.columns.items() if name != step_column}
    merge = _Merge(steps, columns, rows.first_counts)
    if not len(steps) or (np.diff(steps) >= 0).all():
        return Branches(merge.table(np.arange(len(steps))), ())
    tree = _Path(steps, merge)
    bounds = np.flatnonzero(np.diff(steps) < 0) + 1
    for start, end in zip([0, *bounds.tolist()], [*bounds.tolist(), len(steps)], strict=True):
        tree.follow(start, end)
    abandoned = tuple(
        Abandoned(last, to, merge.table(np.array(rows)), merge.table(np.array(branch)))
        for last, to, rows, branch in tree.left
    )
    return Branches(merge.table(np.array(tree.rows())), abandoned)


def _limited(column: Column) -> Column:
    places, values = column
    with np.errstate(over="ignore"):
        return places, np.where(np.abs(values) > LARGEST, np.copysign(np.inf, values), values)


class _Merge:
    """Makes tables of some of the rows; values of the same step are merged."""

    def __init__(self, steps: Steps, columns: Mapping[str, Column], first_counts: bool) -> None:
        self.steps = steps
        self.columns = columns
        self.first_counts = first_counts

    def table(self, chosen: Places) -> Table:
        """The table of the rows ``chosen``, indices in the order in which they count."""
        place_of = np.full(len(self.steps), -1)
        steps, own = np.unique(self.steps[chosen], return_inverse=True)
        place_of[chosen] = own
        columns, non_finite = {}, {}
        for name, (rows, values) in self.columns.items():
            places = place_of[rows]
            here = places >= 0
            places, found = places[here], values[here]
            if not places.size:
                continue
            if self.first_counts:
                places, found = places[::-1], found[::-1]
            column, odd = np.full(len(steps), np.nan), np.zeros(len(steps), dtype=bool)
            column[places], odd[places] = found, ~np.isfinite(found)  # of equal places the last assignment stays
            columns[name] = column
            if odd.any():
                non_finite[name] = steps[odd]
        return Table(steps, columns, non_finite)


class _Path:
    """The rows that are kept so far, by step, as the log is followed stretch by stretch of ascending steps."""

    def __init__(self, steps: Steps, merge: _Merge) -> None:
        self.steps = steps
        self.merge = merge
        self.known: list[int] = []
        """Distinct steps of the kept rows, ascending."""
        self.rows_at: dict[int, list[int]] = {}
        self.left: list[tuple[int, int, list[int], list[int]]] = []
        """For each return: last step before, first step after, rows overtaken, rows kept until then."""

    def rows(self) -> list[int]:
        """Indices of the kept rows in the order of the file."""
        return sorted(row for rows in self.rows_at.values() for row in rows)

    def follow(self, start: int, end: int) -> None:
        """Take the rows from ``start`` to ``end``, whose steps do not fall."""
        first = int(self.steps[start])
        if self.known and first < self.known[-1] and self._returns(start, end):
            back = bisect_left(self.known, first)
            overtaken = [row for step in self.known[back:] for row in self.rows_at[step]]
            self.left.append((self.known[-1], first, sorted(overtaken), self.rows()))
            for step in self.known[back:]:
                del self.rows_at[step]
            del self.known[back:]
        for row in range(start, end):
            self._keep(row, int(self.steps[row]))

    def _keep(self, row: int, step: int) -> None:
        if step in self.rows_at:
            self.rows_at[step].append(row)
            return
        self.rows_at[step] = [row]
        if not self.known or step > self.known[-1]:
            self.known.append(step)
        else:
            self.known.insert(bisect_left(self.known, step), step)

    def _returns(self, start: int, end: int) -> bool:
        """Whether a stretch that begins before the last kept step is another branch."""
        last = self.known[-1]
        cut = start + int(np.searchsorted(self.steps[start:end], last, side="right"))
        overlap = np.unique(self.steps[start:cut]).tolist()
        behind = self.known[bisect_left(self.known, overlap[0]) :]
        again = [step for step in overlap if step in self.rows_at]
        if len(overlap) == 1 and len(behind) > 1 and (cut < end or not again):
            return False
        if not again and len(overlap) < _OFF_GRID:
            return False
        new = self.merge.table(np.arange(start, cut))
        old = self.merge.table(np.array(sorted(row for step in behind for row in self.rows_at[step])))
        shared = new.columns.keys() & old.columns.keys()
        return bool(shared) and not _repeats(new, old, sorted(shared))


def _repeats(new: Table, old: Table, shared: Sequence[str]) -> bool:
    """Whether every step and value of ``new`` is in ``old``."""
    at = np.searchsorted(old.steps, new.steps)
    there = at < len(old.steps)
    if not there.all() or not np.array_equal(old.steps[at], new.steps):
        return False
    return all(_equal(new.columns[name], new.written(name), old.columns[name][at]) for name in shared)


def _equal(new: Floats, written: npt.NDArray[np.bool_], old: Floats) -> bool:
    return bool(np.array_equal(new[written], old[written], equal_nan=True))

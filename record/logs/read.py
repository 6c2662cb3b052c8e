"""Read the runs in a log of any known format: a file or a folder, recognised by its content."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.errors import InputError
from record.table import LAST_STEP, Steps

from .base import HEAD_BYTES, Column, Floats, Format, Log, Places, Rows, open_error
from .branches import split
from .columns import ROLES, find_roles
from .folders import logs_in
from .kinds import FORMATS, TensorBoardEvents

COLUMNS_NAMED = 12
"""Most columns listed in an error."""
_NO_NAMES = ("metrics", "trainer_state")
"""File names that say nothing about the run: it is called as the folder is."""


@dataclass(frozen=True)
class Source:
    """A path that a user gave, and the runs that were found in it."""

    path: str
    logs: tuple[Log, ...]

    @property
    def told(self) -> str:
        """What was taken for what, in one line."""
        first = self.logs[0]
        several = f" of {len(self.logs)} runs" if len(self.logs) > 1 else ""
        roles: dict[str, dict[str, None]] = {}
        for log in self.logs:
            for key, column in log.roles.items():
                roles.setdefault(key, {})[column] = None
        taken = [f"{role.title} = {' | '.join(roles[role.key])}" for role in ROLES[1:] if role.key in roles]
        steps = np.concatenate([log.table.steps for log in self.logs])
        counted = f"{len(first.table.steps):,} steps from {steps.min():,} to {steps.max():,}"
        if several:
            counted = f"steps {steps.min():,} to {steps.max():,}"
        parts = [f"{first.format}{several}", ", ".join(taken) or "no column of a known name", counted]
        parts += list(dict.fromkeys(remark for log in self.logs for remark in log.remarks))
        return f"{Path(self.path).name or self.path}: {'; '.join(parts)}"


def read_logs(path: Path, columns: Mapping[str, str]) -> Source:
    """The runs in a file or a folder. ``columns`` by role come before the table of names.

    Raises :class:`InputError`, one line, for what is neither, is of no known format, or has no column of steps.
    """
    found = _files(path)
    logs = [log for file in found for log in _read_file(file, path, columns)]
    if not logs:
        raise InputError(f"{found[0]}: {recognise(found[0])[1]}, but no row of it has a number; name another log")
    return Source(str(path), tuple(logs))


def _files(path: Path) -> Sequence[Path]:
    if os.path.isfile(path):  # noqa: PTH113  (Path.is_file raises for impossible names)
        return [path]
    if os.path.isdir(path):  # noqa: PTH112
        return logs_in(path)
    raise InputError(f"{path} is neither a directory nor a file; give a run directory or a log")


def _read_file(file: Path, given: Path, columns: Mapping[str, str]) -> Iterator[Log]:
    form, title = recognise(file)
    found = form.read(file)
    for rows in found:
        yield _log(file, title, rows, columns, label_of(file, given, rows.name, len(found)))


def recognise(path: Path) -> tuple[Format, str]:
    """The format of a file, and its title. Raises :class:`InputError`, one line, that says what each format missed in it."""
    if path.is_dir():  # folders.py has found event files in it
        return TensorBoardEvents(), TensorBoardEvents.title
    try:
        # A file of the kernel has no size, and a read of it may wait for ever.
        head = b""
        if path.stat().st_size:
            with path.open("rb") as file:
                head = file.read(HEAD_BYTES)
    except OSError as error:
        raise open_error(path, error) from error
    if not head.strip():
        raise InputError(f"{path} is empty; name a log with at least one row")
    lacking = []
    for cls in sorted(FORMATS.values(), key=lambda cls: cls.order):
        form: Format = cls()
        lacks = form.lacks(path, head)
        if not lacks:
            return form, form.title_of(path, head)
        lacking.append(f"{form.title} ({lacks})")
    raise InputError(f"{path} is no log that can be read; tried: {', '.join(lacking)}")


def label_of(file: Path, given: Path, name: str, count: int) -> str:
    """What a run is called: by its name in the file, else by the file or, if its name tells nothing, by the folder."""
    if name and count > 1:
        return name
    if given != file and file.is_relative_to(given):
        inside = (file if file.is_dir() else file.parent).relative_to(given).as_posix()
        folder = given.absolute().name
        return folder if inside == "." or inside.startswith("checkpoint-") else f"{folder}/{inside}"
    if file.is_dir():
        return file.absolute().name
    return file.absolute().parent.name if file.stem in _NO_NAMES and file.absolute().parent.name else file.stem


def _log(path: Path, title: str, rows: Rows, columns: Mapping[str, str], label: str) -> Log:
    roles = find_roles(rows, columns)
    steps, used, dropped = _steps(path, title, rows, roles.get("step"))
    branches = split(steps, used, dropped.column)
    remarks = [*rows.remarks, *dropped.told()]
    if branches.abandoned:
        count = len(branches.abandoned)
        remarks.append(f"the step goes back {count} times" if count > 1 else "the step goes back once")
    return Log(path, label, title, branches.kept, roles, branches.abandoned, tuple(remarks))


def without_fillers(places: Places, values: Floats) -> Column:
    """A column without the NaN that fill rows in which nothing was logged: most values are NaN, and numbers come back after
    them. NaN that were logged are few, or the last values of a diverged run."""
    nan = np.isnan(values)
    if 2 * nan.sum() <= len(values) or not (nan[:-1] & ~nan[1:]).any():
        return places, values
    return places[~nan], values[~nan]


@dataclass(frozen=True)
class _Dropped:
    """Rows that have no step."""

    column: str
    count: int

    def told(self) -> list[str]:
        rows = "row" if self.count == 1 else "rows"
        return [f"{self.count:,} {rows} without {self.column} passed over"] if self.count else []


def _steps(path: Path, title: str, rows: Rows, column: str | None) -> tuple[Steps, Rows, _Dropped]:
    """The step of each row, the rows that have one, and how many have none."""
    if column is None:
        named = sorted(rows.columns)
        shown = ", ".join(named[:COLUMNS_NAMED]) + (", ..." if len(named) > COLUMNS_NAMED else "")
        raise InputError(
            f"{path}: {title}, but none of its columns counts steps; name it with --columns step=COLUMN, of {shown}"
        )
    places, values = rows.columns[column]
    there = np.isfinite(values)
    places, values = places[there], values[there]
    wrong = (values != np.floor(values)) | (values < 0) | (values > LAST_STEP // 2)
    if wrong.any():
        raise InputError(
            f"{path}: {title}, whose column {column} holds {values[wrong][0]:g}, which is no number of a step; "
            "name another with --columns step=COLUMN"
        )
    if not len(places):
        raise InputError(f"{path}: {title}, but no row has a number under {column}")
    place_of: npt.NDArray[np.int64] = np.full(rows.count, -1, dtype=np.int64)
    place_of[places] = np.arange(len(places))
    kept = {}
    for name, (at, numbers) in rows.columns.items():
        own = place_of[at] >= 0
        if own.any():
            kept[name] = without_fillers(place_of[at[own]], numbers[own])
    used = Rows(rows.name, len(places), kept, rows.first_counts, rows.remarks)
    lost = [at[place_of[at] < 0] for at, _ in rows.columns.values()]
    return values.astype(np.int64), used, _Dropped(column, len(np.unique(np.concatenate(lost))))

"""Rows of .jsonl files one at a time: written as strict JSON, read from either end."""

import itertools
import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.files import strict

Row = dict[str, Any]

BRANCH_FOLDER = "branch_point"
"""Holds the checkpoint of another run from which this one begins."""
BRANCH_ROWS = "rows.jsonl"
"""Beside it, the other run's last rows before."""


def json_line(row: Row) -> str:
    """One line of strict JSON; non-finite floats become strings."""
    return json.dumps(strict(row), allow_nan=False)


def read_rows(path: Path) -> list[Row]:
    """All rows of a .jsonl file; a torn last line (of a killed writer) is skipped. Raises ValueError for any other bad
    line."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            if line:
                rows.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}:{number}: not a JSON object: {error}") from None
    return rows


def rows_backwards(path: Path) -> Iterator[tuple[int, Row]]:
    """The rows of a .jsonl file from the last one back, each with the file position where its line ends. Reads only as much
    as is consumed. A torn last line is skipped; raises ValueError for any other bad line."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        end = text.rfind(b"\n") + 1
        while end > 0:
            start = text.rfind(b"\n", 0, end - 1) + 1
            yield end, _parse(path, text[start:end])
            end = start


def drop_torn_line(path: Path) -> None:
    """Cut off an unfinished last line."""
    if path.exists() and path.stat().st_size:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            whole = text.rfind(b"\n") + 1
        if whole < path.stat().st_size:
            os.truncate(path, whole)


def last_row(path: Path) -> Row | None:
    """The last complete row of a file that may still be written to; None if there is none. Raises ValueError for a bad line."""
    return next((row for _, row in rows_backwards(path)), None)


ENDED = ("finished", "diverged")
"""Statuses of a run that has come to its own end."""


def status_of(run: Path) -> str | None:
    """What a run's status.json says of it; None without one that can be read."""
    try:
        return str(json.loads((run / "status.json").read_text(encoding="utf-8"))["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def rows_up_to(path: Path, step: int, count: int) -> list[Row]:
    """The last ``count`` rows of metrics.jsonl up to ``step``, oldest first."""
    wanted = (row for _, row in rows_backwards(path) if row["step"] <= step)
    return list(itertools.islice(wanted, count))[::-1]


def _parse(path: Path, line: bytes) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}: a line is not a JSON object: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{path}: a line is not a JSON object but {line[:40]!r}")
    return row

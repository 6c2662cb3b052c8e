"""Figures of a part of the check, written as they come: one JSON object a line."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from common.command import ArgumentParser

from . import STARTED

LONGEST_MESSAGE = 300
"""Most characters of an error's message that are kept."""


class Lines:
    """The file of a part's figures, and the part's deadline: ``seconds`` after ``start`` (now, unless given)."""

    def __init__(self, path: Path, seconds: float, part: str = "", start: float | None = None) -> None:
        self._path, self._part, self._seconds = path, part, seconds
        self._deadline = (time.monotonic() if start is None else start) + seconds
        if path.exists():  # a part that was killed may have left half a line
            content = path.read_bytes()
            os.truncate(path, content.rfind(b"\n") + 1)

    @property
    def seconds(self) -> float:
        """Seconds that the part was given."""
        return self._seconds

    def write(self, table: str, **figures: Any) -> None:
        """Append one line and flush it. NaN and infinity become null: JSON has neither."""
        line = json.dumps(_finite({"table": table, **figures}), allow_nan=False)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def time_left(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self._deadline - time.monotonic()

    def left_out(self, what: str, why: str = "no time left") -> None:
        """Say that something was not measured."""
        self.write("left_out", part=self._part, what=what, why=why)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, without a last one that was cut off when its part was killed. Empty without the file."""
    if not path.exists():
        return []
    *whole, _ = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in whole if line]


def add_arguments(parser: ArgumentParser) -> None:
    """Add what every part takes."""
    parser.add_argument("--lines", type=Path, required=True, help="file to append figures to")
    parser.add_argument("--seconds", type=float, required=True, help="time for this part, from the process's start")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda", help="cpu: tiny sizes, to try it out")


def lines_of(arguments: Any, part: str) -> Lines:
    """The lines that the arguments of :func:`add_arguments` ask for."""
    return Lines(arguments.lines, arguments.seconds, part, STARTED)


def described(error: BaseException) -> str:
    """An error in a line: its type and the first line of its message."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first.strip()}"[:LONGEST_MESSAGE]

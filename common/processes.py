"""Processes that are started: how one ended, and what it said last."""

from __future__ import annotations

import re
import signal
from pathlib import Path

LAST_BYTES = 1 << 16
"""Of what a process has said, the end in which its last lines are looked for."""
_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
"""How a terminal is told to move its cursor or to change its colours."""


def ending(returncode: int) -> str:
    """How a process ended that did not finish, in words. ``returncode``: as :mod:`subprocess` gives it."""
    if returncode >= 0:
        return f"failed with status {returncode}"
    names = {number.value: number.name for number in signal.Signals}
    cause = ": probably out of memory" if returncode == -signal.SIGKILL else ""
    return f"killed by {names.get(-returncode, f'signal {-returncode}')}{cause}"


def last_lines(log: Path, count: int, start: int = 0) -> list[str]:
    """The last ``count`` lines in ``log``, from its byte ``start`` on, as they stood on a terminal in the end.

    Of a progress bar, which draws itself over and over in one line, that is how it was drawn last. Empty lines are left out.
    """
    if not log.is_file():
        return []
    with log.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(start, size - LAST_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    lines = [_as_shown(line) for line in text.split("\n")]
    return [line for line in lines if line][-count:]


def _as_shown(line: str) -> str:
    drawn = [_printable(part) for part in _ESCAPE.sub("", line).split("\r")]
    return next((part for part in reversed(drawn) if part), "")


def _printable(text: str) -> str:
    return "".join(character for character in text.expandtabs() if character.isprintable()).rstrip()

"""Child processes: how one ended, and its last lines of output."""

import re
import signal
from pathlib import Path

LAST_BYTES = 1 << 16
"""How much of the end of a log is searched for its last lines."""
_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
"""Terminal control sequences: cursor movement, colours."""


def ending(returncode: int) -> str:
    """Describe in words how a process failed. ``returncode`` is as :mod:`subprocess` gives it."""
    if returncode >= 0:
        return f"failed with status {returncode}"
    names = {number.value: number.name for number in signal.Signals}
    cause = ": probably out of memory" if returncode == -signal.SIGKILL else ""
    return f"killed by {names.get(-returncode, f'signal {-returncode}')}{cause}"


def last_lines(log: Path, count: int, start: int = 0) -> list[str]:
    """The last ``count`` non-empty lines of ``log`` after byte ``start``, as a terminal would show them in the end. Of a
    progress bar, which redraws one line over and over, that is its last state."""
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

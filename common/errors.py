"""Errors that a user can cause (:func:`common.command.exit_status` turns them into an exit status) and notes to the user."""

import os
import sys
from collections.abc import Sequence

LONGEST_LINE = 2000
"""Most characters of a problem that are printed; the middle of a longer one (it may quote a value from a file) is cut."""


class InputError(Exception):
    """One or more mistakes in the user's input: one line each, naming the key, file or value and what to do about it.

    A problem may quote anything, so line ends become spaces and unprintable characters are escaped: no file can move the
    terminal's cursor.
    """

    def __init__(self, *problems: str) -> None:
        self.problems: Sequence[str] = tuple(one_line(problem) for problem in problems)
        super().__init__("\n".join(self.problems))


def one_line(problem: str) -> str:
    """Any text made fit for a terminal: one line, of limited length, printable characters only."""
    line = " ".join(problem.splitlines())
    if len(line) > LONGEST_LINE:
        half = LONGEST_LINE // 2
        line = f"{line[:half]} ... {line[-half:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def note(text: str) -> None:
    """Print to stderr something that is no mistake but may not be what was meant. Of several ranks only the first prints."""
    if os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0":
        return
    print(f"note: {one_line(text)}", file=sys.stderr)

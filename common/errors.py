"""Errors a user can cause, and the one place where they become an exit status.

Every command of the project runs its body through :func:`exit_status`, so that a mistake in a configuration, a path or a
file is told in one line each, with exit status 2 and no traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

LONGEST_LINE = 2000
"""Characters of a problem that are told; of a longer one, a value of somebody else's file in it, the middle is left out."""


class InputError(Exception):
    """One or more mistakes in what the user gave: each problem is one line that names the key, file or value and the mend.

    What a problem quotes may be anything: line ends become spaces, and what does not print is told by its code, so that no
    file can move a terminal's cursor.
    """

    def __init__(self, *problems: str) -> None:
        self.problems: Sequence[str] = tuple(one_line(problem) for problem in problems)
        super().__init__("\n".join(self.problems))


def one_line(problem: str) -> str:
    """What a terminal can be told of any text: on one line, not endlessly long, and of characters that print."""
    line = " ".join(problem.splitlines())
    if len(line) > LONGEST_LINE:
        half = LONGEST_LINE // 2
        line = f"{line[:half]} ... {line[-half:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def note(text: str) -> None:
    """Tell the user, on stderr, what is no mistake but may not be what was meant. Of several ranks the first one tells."""
    if os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0":
        return
    print(f"note: {one_line(text)}", file=sys.stderr)

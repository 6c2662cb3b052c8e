"""Errors a user can cause, and the one place where they become an exit status.

Every command of the project runs its body through :func:`exit_status`, so that a mistake in a configuration, a path or a
file is told in one line each, with exit status 2 and no traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

EXIT_FINISHED = 0
EXIT_BAD_INPUT = 2
EXIT_DIVERGED = 3
EXIT_PREEMPTED = 75
EXIT_INTERRUPTED = 130


class InputError(Exception):
    """One or more mistakes in what the user gave: each problem is one line that names the key, file or value and the mend."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems: Sequence[str] = problems


def exit_status(body: Callable[[], int | None]) -> int:
    """Run ``body`` and return its exit status; an :class:`InputError` is printed to stderr, a line a problem, and gives 2."""
    try:
        return body() or EXIT_FINISHED
    except InputError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED

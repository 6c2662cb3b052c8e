"""Command-line arguments and exit statuses. Every command runs its body through :func:`exit_status`, so that a mistake in a
configuration, a path or a file is reported in one line, with exit status 2 and no traceback."""

import argparse
import os
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import InputError
from .files import at_home

EXIT_FINISHED = 0
EXIT_BAD_INPUT = 2
EXIT_DIVERGED = 3
EXIT_RANK_LOST = 69
EXIT_STORAGE = 74
EXIT_PREEMPTED = 75
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser, which also expands a leading ``~`` to the home directory (a shell does not in
    ``--out=~/results``).

    ``--option=--`` is refused: before Python 3.13 argparse drops that value and returns an empty list.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register("type", None, _argument)
        self.register("type", Path, lambda text: Path(_argument(text)))

    def parse_known_args(  # type: ignore[override]  # parse_args calls this
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As in argparse, where every way of parsing ends up here."""
        given = list(sys.argv[1:] if args is None else args)
        for argument in given[: given.index("--")] if "--" in given else given:
            option, _, value = argument.partition("=")
            if option.startswith("-") and value == "--":
                self.error(f"argument {option}: expected a value, but it is --; a file of that name is ./--")
        return super().parse_known_args(given, namespace)


def _argument(text: str) -> str:
    try:
        return at_home(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def exit_status(body: Callable[[], int | None]) -> int:
    """Run ``body`` and return its exit status; an :class:`InputError` is printed to stderr, one line per problem, and gives
    2."""
    try:
        status = body() or EXIT_FINISHED
        sys.stdout.flush()
        return status
    except InputError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except BrokenPipeError:
        if not _stdout_is_closed():
            raise  # some other pipe or socket: not to be passed over in silence
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still flushes at exit
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _stdout_is_closed() -> bool:
    """Whether the reader of stdout is gone, as `head` may be."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)  # errors are reported whatever is asked for
    except OSError:  # stdout has no file of its own
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))

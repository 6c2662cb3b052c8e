"""Runs, a suite or logs as one HTML file that can be sent to somebody.

    python -m analysis.report RUN|SUITE|LOG... --out report.html [--follow] [--every SECONDS] [--baseline ARM]
        [--columns ROLE=COLUMN ...]

RUN is a run directory (one of a monitor too), SUITE a suite's, LOG a log of any kind that docs/running.md lists. The page says in
plain words what was run and what came out of it, then shows events, curves, tables, and the commands that repeat it. It needs no
network and no other file; the words of its first screen are printed too. --follow writes it anew while training goes on, and the
page loads itself again; Ctrl-C ends that.
"""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from analysis.logs import add_columns_option
from analysis.show.tables import WIDTH
from common.command import ArgumentParser, exit_status
from common.errors import InputError, one_line
from common.files import write_text

from .follow import await_rows, follow
from .happened import what_happened
from .material import Material, read_material
from .page import page
from .verdicts import first_screen

SUFFIXES = (".html", ".htm")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(prog="python -m analysis.report", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "runs", nargs="+", metavar="RUN|SUITE|LOG", help="run directories, one suite's directory, or logs"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.html", help="the page to write")
    parser.add_argument("--follow", action="store_true", help="write it anew until the runs have ended, or Ctrl-C")
    parser.add_argument("--every", type=int, default=10, metavar="SECONDS", help="how often --follow does (default 10)")
    parser.add_argument("--baseline", metavar="ARM", help="the arm to compare with (default: the plan's, or the first)")
    add_columns_option(parser)
    options = parser.parse_args(arguments)
    if options.out.suffix.lower() not in SUFFIXES:
        raise InputError(f"--out {options.out}: a page is written as .html")
    if not 1 <= options.every <= 86_400:
        raise InputError(f"--every is {options.every}; give a whole number of seconds from 1 to 86400")
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = shlex.join(["python", "-m", "analysis.report", *given])

    def read() -> Material:
        return read_material(options.runs, options.columns, options.baseline)

    def write(material: Material, refresh: int | None) -> None:
        write_text(options.out, page(material, command, refresh))

    if options.follow:
        await_rows(options.runs, options.every)
    first = read()
    print(*map(one_line, first.notes), sep="\n", end="\n" * bool(first.notes))
    if options.follow:
        if first.goes_on:
            print(f"writing {options.out} every {options.every} s; Ctrl-C ends this", flush=True)
        follow(first, read, write, options.every)
    else:
        write(first, None)
        print(*_told(first), sep="\n")
    print(
        f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB, {len(first.runs)} run{'s' * (len(first.runs) != 1)}"
    )


def _told(material: Material) -> list[str]:
    """What the page's first screen says, for the terminal."""
    words = first_screen(material, what_happened(material))
    lines = [textwrap.fill(f"- {one.text}", WIDTH, subsequent_indent="  ") for one in words.said]
    return [textwrap.fill(one_line(words.headline), WIDTH), *lines]


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

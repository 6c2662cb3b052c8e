"""Arms of a suite against its baseline over seeds, rates and stresses.

    python -m analysis.stability SUITE_DIR|RUN... [--baseline ARM] --out DIR

SUITE_DIR is the directory of a suite that run_suite.py has run: its suite.json says which run is which arm, scenario, rate and
seed. Of RUN directories the configurations say it: runs form an arm if they differ in nothing but seed, optimizer.lr and stress.
Prints the main tables; writes all of them to DIR: stability.md, stability.json (strict), a CSV file a table, and figures.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from analysis.show.tables import WIDTH, terminal_table
from analysis.show.text import first_of
from common.command import ArgumentParser, exit_status

from . import report
from .compare import Study, study
from .conclusion import short_table
from .fairness import control_line, matched, noise_line, seeds_line, unbegun_line, warnings
from .runs import find_runs
from .tables import Shown

_NAMED = 3
_WARNINGS = 8
"""Most warnings that are printed; all of them are in stability.md."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(prog="python -m analysis.stability", description="Arms over seeds, rates and stresses.")
    parser.add_argument("runs", nargs="+", metavar="SUITE_DIR|RUN", help="a suite's directory, or run directories")
    parser.add_argument("--baseline", metavar="ARM", help="the arm to compare with (default: the plan's, or the first)")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables and figures")
    options = parser.parse_args(arguments)
    comparison = find_runs(options.runs, options.baseline)
    found = study(comparison)
    written = report.write(found, options.out)  # first: a reader of what is printed may close the pipe
    _print(found)
    print(f"written to {options.out}: {', '.join(written)}")


def _print(found: Study) -> None:
    one = found.comparison
    print(f"{len(one.runs)} of {len(one.planned)} planned runs have ended; baseline: {one.baseline}")
    if one.left_out:
        names = [Path(one.planned[cell]).name for cell in one.left_out]
        print(_wrapped(f"! {len(names)} planned runs are left out: {first_of(names, _NAMED)}; why, says stability.md"))
    for line in (unbegun_line(one), seeds_line(one), noise_line(found), control_line(found)):
        if line is not None:
            print(_wrapped(line))
    for table in report.main_tables(found):
        print(f"\n{as_text(table)}")
    print()
    told = warnings(found)
    for line in told[:_WARNINGS]:
        print(_wrapped(f"! {line}"))
    if len(told) > _WARNINGS:
        print(f"! and {len(told) - _WARNINGS} more warnings in stability.md")
    print(matched(one))
    if (closing := short_table(found)) is not None:
        print(f"\n{as_text(closing)}\n")


def as_text(table: Shown) -> str:
    """A table for the terminal, without the columns that only files have."""
    kept = [place for place, name in enumerate(table.header) if name not in table.in_files]
    header, *rows = ([row[place] for place in kept] for row in (table.header, *table.rows))
    notes = f"\n{_wrapped(table.notes)}" if table.notes else ""
    return f"{table.title}\n{terminal_table(header, rows)}{notes}"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

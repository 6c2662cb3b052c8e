"""Published findings about training instability, reproduced at a small size: which come out here, and which do not.

    python -m benchmarks.reproduce [KEY ...] [OVERRIDE ...] --out DIR [--seeds N]

Each finding (a file of this package) has a few small runs of configs/reproduce.yaml or a calculation of its own, and a rule
that was fixed before they were read. What is there in DIR already is not made again: the command goes on where it was stopped.
Without a KEY, all findings; an OVERRIDE such as data.cache_dir=DIR changes the recipe. Writes DIR/reproduce.md and
reproduce.json, which have every finding that was judged in DIR so far.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from common.command import ArgumentParser, exit_status
from common.errors import InputError

from .base import load_findings
from .table import keep, write_report
from .train import complete, cpu_minutes


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(prog="python -m benchmarks.reproduce", description="Published findings at a small size.")
    parser.add_argument(
        "keys", nargs="*", metavar="KEY", help="a finding, as A9, or an override of the recipe, as a.b=c"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and the tables")
    parser.add_argument("--seeds", type=int, help="seeds of each finding (default: what the finding says)")
    options = parser.parse_args(arguments)
    if options.seeds is not None and options.seeds < 1:
        raise InputError(f"--seeds {options.seeds}: a finding needs at least one seed")
    overrides = [key for key in options.keys if "=" in key]
    findings = load_findings()
    chosen = [key for key in options.keys if "=" not in key] or list(findings)
    if unknown := [key for key in chosen if key not in findings]:
        raise InputError(f"{', '.join(unknown)}: no such finding; there are {', '.join(findings)}")
    out = options.out.absolute()
    for key in chosen:
        finding = findings[key]()
        seeds = options.seeds or finding.seeds
        outcome = finding.judge(complete(finding, seeds, out, overrides))
        keep(finding, outcome, seeds, cpu_minutes(finding, seeds, out), out)
        write_report(out)
        print(f"{key}: {outcome.verdict}: {outcome.told}", flush=True)
    print(f"{out / 'reproduce.md'}: written")


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    raise SystemExit(exit_status(main))

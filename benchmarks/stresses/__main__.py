"""What each stress does to a small run, and what each remedy makes of it.

    python -m benchmarks.stresses --out DIR [--seed N] [--part stresses|remedies]

One parent run on docstrings, and branches from its checkpoints (arms.py): a calm one, one for each stress, and for each remedy a
calm one and some with a stress. Each is held against the calm run of its kind, step by step (measure.py). Arms that have ended
are not repeated: the same command goes on. Writes DIR/stresses.md and DIR/remedies.md, also if it is interrupted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from common.command import ArgumentParser, exit_status
from common.files import write_text

from .arms import Plan, train
from .report import remedy_tables, stress_table

PARTS = {"stresses": stress_table, "remedies": remedy_tables}
"""The tables of each part."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(prog="python -m benchmarks.stresses", description="Stresses and remedies on a small run.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and the tables")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=PARTS, help="one of the two parts (default: both)")
    options = parser.parse_args(arguments)
    plan = Plan(options.out.absolute(), seed=options.seed)
    for part in [options.part] if options.part else PARTS:
        print(run_part(plan, part))


def run_part(plan: Plan, part: str) -> str:
    """Train the arms of a part that are missing, and write its tables, even if it is interrupted."""
    remedies, stresses = ([], plan.stresses) if part == "stresses" else (plan.remedies, plan.treated)
    arms = [(remedy, stress) for remedy in (None, *remedies) for stress in (None, *stresses)]
    try:
        for remedy, stress in arms:
            train(plan, remedy, stress)
    finally:
        report = PARTS[part](plan)
        write_text(plan.out / f"{part}.md", report)
    return report


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    raise SystemExit(exit_status(main))

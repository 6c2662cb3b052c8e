"""How far a suite is that was started elsewhere, from its runs' files."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from common.errors import InputError
from record.lock import lock_holder
from record.rows import status_of
from record.suite import SuitePlan

from .report import results

PERIOD = 5.0
"""Seconds between two looks."""
UNREADABLE = "unreadable"
STATES = {"preempted": "stopped"}
"""What a run's status is called in the suite's table, if not the same."""


def watch(plan: SuitePlan, out: Path) -> int:
    """Print how far each run is: on a terminal again and again, until all have ended or Ctrl-C. Raises InputError if nothing was
    started."""
    if not any((out / run.name).is_dir() for run in plan.runs):
        raise InputError(f"{out}: none of the suite's runs is there; start it first, without --watch")
    console = Console(file=sys.stdout, highlight=False, markup=False)
    ends = states(plan, out)
    if not console.is_terminal:
        print(told(plan, ends, out))
        return 0
    with Live(Text(told(plan, ends, out)), console=console, auto_refresh=False) as live:
        while "running" in ends.values():
            time.sleep(PERIOD)
            ends = states(plan, out)
            live.update(Text(told(plan, ends, out)), refresh=True)
    return 0


def states(plan: SuitePlan, out: Path) -> dict[str, str]:
    """The status of each run that was started."""
    return {run.name: _state(out / run.name) for run in plan.runs if (out / run.name / "status.json").exists()}


def _state(run: Path) -> str:
    """One that was killed still says that it is running, but holds no lock; nor does one that has just ended."""
    status = status_of(run)
    if status == "running" and lock_holder(run) is None:
        status = "killed" if (now := status_of(run)) == "running" else now
    return UNREADABLE if status is None else STATES.get(status, status)


def told(plan: SuitePlan, ends: Mapping[str, str], out: Path) -> str:
    """The table of the runs, and how many are in which state."""
    count = Counter(ends.get(run.name, "not started") for run in plan.runs)
    return f"{results(plan, ends, out)}\n\n" + ", ".join(f"{number} {state}" for state, number in count.items())

"""How a suite's runs ended, as a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from pathlib import Path

from analysis.compare.statistics import mean_over_seeds
from analysis.show.tables import terminal_table
from record.rows import Row, last_row
from record.suite import PlannedRun, SuitePlan

MOST_ROWS = 24
"""Runs up to which each has a row; of more, each arm's in a scenario and at a rate share one."""
STATES = ("finished", "diverged", "running", "not started")
"""Of runs, with a column each; of others, such as those that failed, their number is told."""
NLL = "validation/nll"
Place = tuple[str | None, float | None, int | None]


def results(plan: SuitePlan, ends: Mapping[str, str], out: Path) -> str:
    """How each run ended, its last step, and its validation NLL, also relative to the baseline's run of the same scenario,
    rate and seed. ``ends``: in a word; what is not there was not started."""
    last = {run.name: _last(out / run.name) for run in plan.runs}
    nll = {
        run.name: float(row[NLL])
        for run in plan.runs
        if (row := last[run.name][1]) and NLL in row and ends.get(run.name) == "finished"
    }
    base = {_place(run): nll[run.name] for run in plan.runs if run.arm == plan.baseline and run.name in nll}
    if len(plan.runs) > MOST_ROWS:
        return _by_cell(plan, ends, nll, base)
    rows = []
    for run in plan.runs:
        value = nll.get(run.name, math.nan)
        against = math.nan if run.arm == plan.baseline else value - base.get(_place(run), math.nan)
        rows.append(
            [run.name, ends.get(run.name, "not started"), last[run.name][0], _cell(value), _cell(against, "+.4f")]
        )
    return terminal_table(["run", "end", "last step", "validation NLL", f"minus {plan.baseline}"], rows)


def _by_cell(plan: SuitePlan, ends: Mapping[str, str], nll: Mapping[str, float], base: Mapping[Place, float]) -> str:
    cells: dict[tuple[str, str, str], list[PlannedRun]] = {}
    for run in plan.runs:
        of = (run.arm, run.scenario or "", "" if run.rate is None else f"{run.rate:g}")
        cells.setdefault(of, []).append(run)
    rows = []
    for of, runs in cells.items():
        told = [ends.get(run.name, "not started") for run in runs]
        values = [nll[run.name] for run in runs if run.name in nll]
        pairs = [nll[run.name] - base[_place(run)] for run in runs if run.name in nll and _place(run) in base]
        counts = [f"{told.count(one)}" if one in told else "" for one in STATES]
        others = sum(one not in STATES for one in told)
        against = "" if not pairs or of[0] == plan.baseline else mean_over_seeds(pairs).format("+.4f")
        mean = _cell(statistics.fmean(values)) if values else ""
        rows.append([*of, *counts, f"{others}" if others else "", mean, against])
    header = [
        "arm",
        "scenario",
        "rate",
        "finished",
        "diverged",
        "running",
        "to do",
        "other",
        "validation NLL",
        f"minus {plan.baseline} [95%]",
    ]
    used = [i for i, _ in enumerate(header) if i == 0 or any(row[i] for row in rows)]
    return terminal_table([header[i] for i in used], [[row[i] for i in used] for row in rows])


def _place(run: PlannedRun) -> Place:
    """What a run is compared at."""
    return run.scenario, run.rate, run.seed


def _last(directory: Path) -> tuple[str, Row]:
    """The last step of a run and its row; a damaged file must not hide the other runs."""
    try:
        row = last_row(directory / "metrics.jsonl")
        return (str(row["step"]), row) if row else ("", {})
    except (ValueError, TypeError, KeyError, OSError):
        return "unreadable", {}


def _cell(value: float, form: str = ".4f") -> str:
    return "" if math.isnan(value) else format(value, form)

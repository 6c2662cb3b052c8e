"""How a suite's runs ended, as a table. The final loss is that of analysis.stability."""

from __future__ import annotations

import contextlib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from analysis.compare.final import final_nll
from analysis.compare.statistics import mean_over_seeds
from analysis.show.tables import terminal_table
from common.errors import InputError
from record.rows import ENDED, Row, last_row
from record.suite import PlannedRun, SuitePlan

MOST_ROWS = 24
"""Runs up to which each has a row; of more, each arm's in a scenario and at a rate share one."""
STATES = ("finished", "diverged", "running", "not started")
"""Of runs, with a column each; of others, such as those that failed, their number is told."""
NLL, TRAINING_NLL = "validation/nll", "loss/nll"
Place = tuple[str | None, float | None, int | None]


def results(plan: SuitePlan, ends: Mapping[str, str], out: Path) -> str:
    """How each run ended, its last step, and its final validation NLL, also relative to the baseline's run of the same scenario,
    rate and seed; and what counts as the NLL of a run that diverged, or could not begin since the run that it begins at did.
    ``ends``: in a word; what is not there was not started."""
    last = {run.name: _last(out / run.name) for run in plan.runs}
    ended = [run.name for run in plan.runs if ends.get(run.name) in ENDED]
    found = {name: _final(out / name, ends[name] == "diverged", last[name][1]) for name in ended}
    unbegun = _unbegun(plan, ends, out, {name: step for name, (step, _) in last.items()})
    found |= {name: _initial(out / origin) for name, origin in unbegun.items()}
    nll = {name: value for name, value in found.items() if value is not None}
    base = {_place(run): nll[run.name] for run in plan.runs if run.arm == plan.baseline and run.name in nll}
    initial = sum(value == _initial(out / unbegun.get(name, name)) for name, value in nll.items())
    note = _note(initial, sum(name in nll for name in unbegun))
    if len(plan.runs) > MOST_ROWS:
        return _by_cell(plan, {**ends, **dict.fromkeys(unbegun, "diverged")}, nll, base) + note
    ends = {**ends, **dict.fromkeys(unbegun, "not begun")}
    rows = []
    for run in plan.runs:
        value = nll.get(run.name, math.nan)
        against = math.nan if run.arm == plan.baseline else value - base.get(_place(run), math.nan)
        rows.append(
            [run.name, ends.get(run.name, "not started"), last[run.name][0], _cell(value), _cell(against, "+.4f")]
        )
    return terminal_table(["run", "end", "last step", "validation NLL", f"minus {plan.baseline}"], rows) + note


def _note(initial: int, unbegun: int) -> str:
    """How many runs count with their initial NLL, and how many of these are branches that could not begin."""
    if not initial:
        return ""
    if initial == 1:
        text = "1 run diverged, or ended above its initial NLL, and counts with that"
    else:
        text = f"{initial} runs diverged, or ended above their initial NLL, and count with that"
    if unbegun:
        which = "1 is a branch of a run" if unbegun == 1 else f"{unbegun} are branches of runs"
        text += f"; {which} that diverged before"
    return f"\n\n{text}"


def _unbegun(plan: SuitePlan, ends: Mapping[str, str], out: Path, last: Mapping[str, str]) -> dict[str, str]:
    """The planned branches without a directory whose arm's run of the same rate and seed diverged before they could begin, and
    that run: those that analysis.stability counts as diverged. ``last``: each run's last step."""
    missing = [run for run in plan.runs if not (out / run.name).is_dir()]
    names, origins = {(run.arm, *_place(run)): run.name for run in plan.runs}, _origins(plan, ends, out, missing)
    found: dict[str, str] = {}
    for _ in origins:  # again for branches of branches
        for run in missing:
            scenario, step = origins.get(run.scenario, (None, -1))
            parent = names.get((run.arm, scenario, run.rate, run.seed), "")
            first = found.get(parent, parent)
            if ends.get(first) == "diverged" and last[first].isdecimal() and int(last[first]) <= step:
                found[run.name] = first
    return found


def _origins(
    plan: SuitePlan, ends: Mapping[str, str], out: Path, missing: Sequence[PlannedRun]
) -> dict[str | None, tuple[str | None, int]]:
    """By scenario of the missing runs the scenario and the step at which its branches begin, as a run that has ended says."""
    from record.finished import read_config  # pandas takes a while to import

    scenarios, found = {run.name: run.scenario for run in plan.runs}, {}
    for scenario in {run.scenario for run in missing}:
        like = next((run.name for run in plan.runs if run.scenario == scenario and ends.get(run.name) in ENDED), None)
        if like is None:
            continue
        with contextlib.suppress(InputError):  # a damaged run must not hide the others
            place, _, step = str(read_config(out / like).get("branch_from") or "").rpartition("@")
            if (parent := Path(place).name) in scenarios and step.isdecimal():
                found[scenario] = scenarios[parent], int(step)
    return found


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


def _final(run: Path, diverged: bool, row: Row) -> float | None:
    validation = float(row[NLL]) if NLL in row else None
    if diverged or validation is not None:
        return final_nll(diverged, validation, _initial(run))
    return None


@cache
def _initial(run: Path) -> float | None:
    """The first finite training NLL of a run that has ended, of a branch that of the run that it begins at."""
    from record.finished import read_config  # pandas takes a while to import

    try:
        if (origin := read_config(run).get("branch_from")) is not None:
            return _initial(run.parent / Path(str(origin).rpartition("@")[0]).name)
        with (run / "metrics.jsonl").open("rb") as file:
            values = (float(json.loads(line).get(TRAINING_NLL, math.nan)) for line in file)
            return next((value for value in values if math.isfinite(value)), None)
    except (InputError, OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def _cell(value: float, form: str = ".4f") -> str:
    return "" if math.isnan(value) else format(value, form)

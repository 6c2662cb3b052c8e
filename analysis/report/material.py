"""What a page is made of: the runs or logs that were named, and the comparison of their arms if they form any."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from analysis.logs import LogRun, load_runs_and_logs
from analysis.stability.compare import Study, study
from analysis.stability.runs import Cell, find_runs
from common.errors import InputError
from record.finished import Run, is_within, load_run
from record.rows import ENDED
from record.suite import PLAN_FILE, read_plan

RUNNING = "running"
"""What status.json says of a run that goes on, or was killed."""
_LARGEST_FILE = 2**26
"""Bytes of a file of results beyond which it is not read."""


@dataclass(frozen=True)
class Material:
    """What was found at the paths that were given."""

    paths: tuple[str, ...]
    runs: dict[str, Run]
    """Every run and log that has rows, by label."""
    study: Study | None = None
    """The arms, if runs of several configurations or seeds have ended."""
    suite: Path | None = None
    planned: int = 0
    """Runs of the suite's plan."""
    notes: list[str] = field(default_factory=list)
    """What a reader has to know of how they were read."""

    @property
    def places(self) -> list[Path]:
        """The folders in which results about these runs may be."""
        folders = [run.path for run in self.runs.values() if not isinstance(run, LogRun)]
        return [*([] if self.suite is None else [self.suite]), *folders]

    @property
    def logs(self) -> bool:
        """Whether some come from other tools."""
        return any(isinstance(run, LogRun) for run in self.runs.values())

    @property
    def goes_on(self) -> bool:
        """Whether more may come: a run that has not ended, a log, which never says so, or runs of a plan that are missing."""
        waiting = False
        if self.suite is not None:
            begun = len(self.runs) + (len(self.study.comparison.unbegun) if self.study else 0)
            waiting = begun < self.planned
        return waiting or any(isinstance(run, LogRun) or is_running(run) for run in self.runs.values())


def is_running(run: Run) -> bool:
    """Whether a run goes on, as far as its status says."""
    return run.status.get("status") == RUNNING


def read_material(paths: Sequence[str], columns: Sequence[str] = (), baseline: str | None = None) -> Material:
    """Read what is at ``paths``: one suite's directory, or run directories and logs. Raises :class:`InputError`."""
    suites = [path for path in paths if _is_suite(path)]
    if suites and len(paths) > 1:
        raise InputError(f"{suites[0]} is a suite's directory; give it alone, or run directories and logs only")
    if suites:
        return _of_suite(Path(suites[0]), baseline)
    with contextlib.redirect_stdout(io.StringIO()) as told:
        runs = load_runs_and_logs(paths, columns)
    found = _study_of(runs, baseline)
    return Material(tuple(paths), runs, found, notes=told.getvalue().splitlines())


def _is_suite(path: str) -> bool:
    try:
        return (Path(path) / PLAN_FILE).is_file()
    except (OSError, ValueError):
        return False


def _of_suite(directory: Path, baseline: str | None) -> Material:
    """A suite: the arms of the runs that have ended, and the runs that go on."""
    plan = read_plan(directory)
    names = [] if plan is None else [run.name for run in plan.runs]
    try:
        found = study(find_runs([str(directory)], baseline), rules=())
    except InputError:
        runs = _begun(directory, names)
        if not runs or baseline is not None:
            raise
        return Material(
            (str(directory),), runs, None, directory, len(names), ["None of the suite's runs has ended yet."]
        )
    ended = {run.path.name: run for run in found.comparison.runs.values()}
    others = _begun(directory, [name for name in names if name not in ended])
    return Material((str(directory),), ended | others, found, directory, len(names))


def _begun(directory: Path, names: Sequence[str]) -> dict[str, Run]:
    """Those of the planned runs that have rows."""
    found = {}
    for name in names:
        if is_within(directory / name, directory):
            with contextlib.suppress(InputError):
                found[name] = load_run(directory / name)
    return found


def _study_of(runs: Mapping[str, Run], baseline: str | None) -> Study | None:
    """The arms that run directories of train_lm.py form, if two of them or more have ended. Raises :class:`InputError` only for
    a baseline that is none of them."""
    own = [run for run in runs.values() if not isinstance(run, LogRun) and "monitor" not in run.config]
    ended = sum(run.status.get("status") in ENDED for run in own)
    if len(own) < len(runs) or ended < 2:
        if baseline is not None:
            raise InputError(f"--baseline {baseline}: there are no arms; give a suite, or two runs that have ended")
        return None
    try:
        return study(find_runs([str(run.path) for run in own], baseline), rules=())
    except InputError:
        if baseline is not None:
            raise
        return None  # twice the same configuration: runs beside each other, and no arms


def runs_of_arms(material: Material, scenario: str) -> dict[str, list[str]]:
    """The labels of the runs of each arm in a scenario, at the rate that is best for the arm."""
    found = material.study
    if found is None:
        return {}
    labels = {run.path: label for label, run in material.runs.items()}
    named: dict[str, list[str]] = {}
    for arm in found.comparison.arms:
        if scenario not in {cell.scenario for cell in found.comparison.planned if cell.arm == arm}:
            continue
        rate = found.rate_of(arm, scenario, None)
        cells = [Cell(arm, scenario, rate, seed) for seed in found.comparison.seeds(arm)]
        own = [labels[found.comparison.runs[cell].path] for cell in cells if cell in found.comparison.runs]
        if own:
            named[arm] = own
    return named


def read_json(path: Path) -> Any:
    """What a JSON file of results holds; None if it cannot be read."""
    try:
        if path.stat().st_size > _LARGEST_FILE:
            return None
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def files_named(places: Sequence[Path], name: str, *patterns: str) -> list[Path]:
    """The files of a name in these folders, in those directly below them, and where ``patterns`` lead; each once."""
    found = (
        path for place in places for pattern in (name, f"*/{name}", *patterns) for path in sorted(place.glob(pattern))
    )
    return list(dict.fromkeys(path for path in found if path.is_file()))


class Claims(NamedTuple):
    """What analysis.claims has found in a suite."""

    folder: str
    runs: object
    planned: object
    claims: list[dict[str, Any]]
    """At least one, as in claims.json."""


def claims_of(material: Material) -> list[Claims]:
    """The contents of each claims.json in the suite's folder that has any."""
    found = []
    for path in files_named([] if material.suite is None else [material.suite], "claims.json"):
        read = read_json(path)
        if isinstance(read, dict) and isinstance(read.get("claims"), list):
            claims = [one for one in read["claims"] if isinstance(one, dict)]
            found += [Claims(path.parent.name, read.get("runs"), read.get("planned"), claims)] if claims else []
    return found

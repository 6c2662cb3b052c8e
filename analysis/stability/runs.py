"""Which runs form which cell: arm, scenario, rate and seed, from a suite's plan or from the runs' own configurations."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from analysis.compare.differing import differing, what_matters
from analysis.curves.families import settings_text
from common.errors import InputError
from record.finished import Run, is_file, is_within, load_run, read_config, run_directory, unique_labels
from record.rows import ENDED
from record.suite import PLAN_FILE, PlannedRun, SuitePlan, read_plan

CALM = "calm"
"""The scenario of runs without a stress, where nothing names it."""
_CELL_KEYS = ("seed", "optimizer.lr", "stress", "branch_from")
"""Keys that distinguish the cells of an arm, not arms."""
_OF_A_CELL = re.compile(r"[-_.]*(seed|s|lr|rate)?[-_]?\d[\d.e+-]*$|[-_.]*seed$")
"""What the end of a run's name says of its seed or its rate."""


class Cell(NamedTuple):
    """The place of one run in a comparison."""

    arm: str
    scenario: str
    rate: float | None
    """Peak learning rate; None where it is not known."""
    seed: int


@dataclass(frozen=True)
class Unbegun:
    """A branch that could not begin, since the run that it begins at diverged before. It counts as a run that diverged."""

    parent: Run
    """The run that diverged."""
    step: int
    """After which the branch was to begin."""
    like: Run
    """A branch of the same scenario that did begin, and so says when stresses act and which step is the last."""


@dataclass(frozen=True)
class Comparison:
    """All runs that are compared, and what is missing."""

    arms: tuple[str, ...]
    """The baseline first, then the control, if there is one."""
    control: str | None
    """The arm that is the baseline again, with other seeds."""
    scenarios: tuple[str, ...]
    """Those without a stress first."""
    planned: Mapping[Cell, str]
    """Directory of each run that there should be."""
    runs: Mapping[Cell, Run]
    """Those of them that have ended."""
    unbegun: Mapping[Cell, Unbegun]
    """Branches that there is nothing of but a run that diverged before them."""
    left_out: Mapping[Cell, str]
    """Why each of the others is in neither."""

    @property
    def baseline(self) -> str:
        """The arm that the others are compared with."""
        return self.arms[0]

    @property
    def calm(self) -> str:
        """The scenario that the others are held against: the first without a stress, otherwise the first."""
        return self.scenarios[0]

    @property
    def compared(self) -> tuple[str, ...]:
        """All arms but the baseline, the control first."""
        return self.arms[1:]

    def name(self, cell: Cell) -> str:
        """The name of a planned run."""
        return self.runs[cell].name if cell in self.runs else Path(self.planned[cell]).name

    def rates(self, arm: str, scenario: str) -> list[float | None]:
        """The planned rates of an arm in a scenario, ascending."""
        return self._rates.get((arm, scenario), [])

    @cached_property
    def _rates(self) -> dict[tuple[str, str], list[float | None]]:
        found: dict[tuple[str, str], set[float | None]] = {}
        for cell in self.planned:
            found.setdefault(cell[:2], set()).add(cell.rate)
        return {place: sorted(own, key=lambda rate: -1.0 if rate is None else rate) for place, own in found.items()}

    def seeds(self, arm: str) -> list[int]:
        """The planned seeds of an arm, ascending."""
        return self._seeds.get(arm, [])

    @cached_property
    def _seeds(self) -> dict[str, list[int]]:
        found: dict[str, set[int]] = {}
        for cell in self.planned:
            found.setdefault(cell.arm, set()).add(cell.seed)
        return {arm: sorted(own) for arm, own in found.items()}

    def pairs(self, arm: str, scenario: str | None = None) -> list[tuple[int, int]]:
        """Which seed of an arm belongs to which of the baseline's: the same one, but a control's are paired in order. Only seeds
        that are planned for both, of a scenario those that are planned in it."""
        own, base = self.seeds(arm), self.seeds(self.baseline)
        pairs = list(zip(own, base, strict=False)) if arm == self.control else [(s, s) for s in own if s in base]
        if scenario is None:
            return pairs
        there = {(cell.arm, cell.seed) for cell in self.planned if cell.scenario == scenario}
        return [(s, other) for s, other in pairs if (arm, s) in there and (self.baseline, other) in there]

    def partner(self, cell: Cell) -> Cell | None:
        """The run that a stressed one is held against: that of the calm scenario with the same arm, rate and seed, if it is
        there."""
        calm = cell._replace(scenario=self.calm)
        return calm if cell.scenario != self.calm and calm in self.runs else None

    def parent(self, run: Run) -> Run | None:
        """The run that a branch comes from, if it is among these: found by its directory's name, since suites are moved."""
        return None if (name := _parent_name(run.config)) is None else self._by_name.get(name)

    @cached_property
    def _by_name(self) -> dict[str, Run]:
        return {run.path.resolve().name: run for run in self.runs.values()}


def find_runs(paths: Sequence[str], baseline: str | None = None) -> Comparison:
    """The runs at ``paths``: of a suite's directory all that its plan names, otherwise each path a run directory.

    ``baseline``: an arm's label; by default that of the plan, or of the first run. Raises :class:`InputError` if nothing can be
    compared.
    """
    plans = {path: plan for path in paths if (plan := _plan(path)) is not None}
    if plans and len(paths) > 1:
        raise InputError(f"{next(iter(plans))} is a suite's directory; give it alone, or run directories only")
    if plans:
        path, plan = next(iter(plans.items()))
        return _of_plan(Path(path), plan, baseline)
    return _of_paths(paths, baseline)


def _plan(path: str) -> SuitePlan | None:
    return read_plan(Path(path)) if is_file(Path(path) / PLAN_FILE) else None


def _of_plan(directory: Path, plan: SuitePlan, baseline: str | None) -> Comparison:
    planned: dict[Cell, str] = {}
    for run in plan.runs:
        if not is_within(directory / run.name, directory):
            raise InputError(f"{directory / PLAN_FILE}: the run {run.name!r} lies outside of the suite's directory")
    for run, cell in zip(plan.runs, _cells(plan.runs, directory), strict=True):
        if cell in planned:
            raise InputError(f"{directory / PLAN_FILE}: {run.name} has arm, scenario, rate and seed of another run")
        planned[cell] = str(directory / run.name)
    if not planned:
        raise InputError(f"{directory / PLAN_FILE} plans no runs; run_suite.py with the suite's file writes it again")
    runs, left_out = _loaded(planned)
    if not runs:
        raise InputError(f"{directory}: none of the {len(planned)} planned runs has ended; let run_suite.py go on")
    first = plan.baseline if baseline is None else baseline
    return _comparison(planned, runs, left_out, first, plan.control if first == plan.baseline else None)


def _cells(runs: Sequence[PlannedRun], directory: Path) -> list[Cell]:
    """The runs' cells; a rate or a seed that the suite leaves to the recipe is that of the run's configuration. The rate of a run
    that is missing is that of the arm's other runs in the scenario."""
    cells = []
    for run in runs:
        config: Mapping[str, Any] = {}
        if run.rate is None or run.seed is None:
            with contextlib.suppress(InputError):  # a run that is missing is told later
                config = read_config(directory / run.name)
        rate = _number(config, "lr") if run.rate is None else run.rate
        cells.append(Cell(run.arm, run.scenario or CALM, rate, _seed(config) if run.seed is None else run.seed))
    known = {cell[:2]: cell.rate for cell in cells if cell.rate is not None}
    return [cell._replace(rate=known.get(cell[:2])) if cell.rate is None else cell for cell in cells]


def _seed(config: Mapping[str, Any]) -> int:
    seed = config.get("seed")
    return seed if isinstance(seed, int) else 0


def _of_paths(paths: Sequence[str], baseline: str | None) -> Comparison:
    problems: list[str] = []
    configs: list[dict[str, Any]] = []
    places: list[Path] = []
    for path in paths:
        try:
            places.append(run_directory(path))
            configs.append(read_config(places[-1]))
        except InputError as error:
            problems.extend(error.problems)
    if problems:
        raise InputError(*problems)
    arm_labels = _labels([_arm_settings(config) for config in configs], [place.resolve().name for place in places])
    scenario_labels = _scenarios(configs)
    planned: dict[Cell, str] = {}
    for place, config, arm, scenario in zip(places, configs, arm_labels, scenario_labels, strict=True):
        cell = Cell(arm, scenario, _number(config, "lr"), _seed(config))
        if cell in planned:
            raise InputError(f"{place} and {planned[cell]} have the same configuration and seed; give one of them")
        planned[cell] = str(place)
    runs, left_out = _loaded(planned)
    if not runs:
        raise InputError(*(f"{planned[cell]}: {why}" for cell, why in left_out.items()))
    return _comparison(planned, runs, left_out, arm_labels[0] if baseline is None else baseline, None)


def _loaded(planned: Mapping[Cell, str]) -> tuple[dict[Cell, Run], dict[Cell, str]]:
    """The runs that have ended, and why each of the others cannot be measured."""
    runs, left_out = {}, {}
    for cell, path in planned.items():
        if not _is_directory(path):
            left_out[cell] = "no such directory"
            continue
        try:
            run = load_run(path)
        except InputError as error:
            left_out[cell] = error.problems[0]
            continue
        if run.status["status"] in ENDED:
            runs[cell] = run
        else:
            left_out[cell] = f"not ended: {run.status['status']} at step {run.metrics.index[-1]}"
    return runs, left_out


def _comparison(
    planned: dict[Cell, str], runs: dict[Cell, Run], left_out: dict[Cell, str], baseline: str, control: str | None
) -> Comparison:
    arms = list(dict.fromkeys(cell.arm for cell in planned))
    if baseline not in arms:
        raise InputError(f"--baseline: {baseline!r} is none of the arms: {', '.join(arms)}")
    first = [baseline] if control is None else [baseline, control]
    scenarios = list(dict.fromkeys(cell.scenario for cell in planned))
    unbegun = _unbegun(planned, runs)
    stressed = {
        cell.scenario for cell, run in runs.items() if run.config.get("stress") or run.config.get("branch_from")
    }
    return Comparison(
        arms=tuple(dict.fromkeys([*first, *arms])),
        control=control,
        scenarios=tuple(sorted(scenarios, key=lambda name: (name in stressed, name != CALM))),
        planned=planned,
        runs=runs,
        unbegun=unbegun,
        left_out={cell: why for cell, why in left_out.items() if cell not in unbegun},
    )


def _unbegun(planned: Mapping[Cell, str], runs: Mapping[Cell, Run]) -> dict[Cell, Unbegun]:
    """The planned branches without a directory whose arm's run of the same rate and seed diverged before they could begin. From
    which scenario and step a scenario's branches begin, its other runs say."""
    cells = {Path(path).name: cell for cell, path in planned.items()}
    origins: dict[str, tuple[str, Run]] = {}
    for cell, run in runs.items():
        if (name := _parent_name(run.config)) in cells and str(_branch_step(run.config)).isdecimal():
            origins.setdefault(cell.scenario, (cells[name].scenario, run))
    waiting = [cell for cell, path in planned.items() if cell.scenario in origins and not _is_directory(path)]
    found: dict[Cell, Unbegun] = {}
    for _ in origins:  # again for branches of branches
        for cell in waiting:
            scenario, like = origins[cell.scenario]
            begin, step = cell._replace(scenario=scenario), int(str(_branch_step(like.config)))
            parent = found[begin].parent if begin in found else runs.get(begin)
            if parent is not None and parent.status["status"] == "diverged" and parent.metrics.index[-1] <= step:
                found[cell] = Unbegun(parent, step, like)
    return found


def _arm_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes the arm: all that affects training, but for what distinguishes its cells."""
    return {key: value for key, value in what_matters(config).items() if key not in _CELL_KEYS}


def _labels(settings: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    """A label for the arm of each run: what the names of its runs begin with, otherwise the settings in which it differs."""
    arms = [one for index, one in enumerate(settings) if one not in settings[:index]]
    keys = differing(arms)
    stems = []
    for place, arm in enumerate(arms):
        own = [name for name, one in zip(names, settings, strict=True) if one == arm]
        text = settings_text({key: values[place] for key, values in keys.items()})
        stems.append(_common_stem(own) or text or own[0])
    labels = unique_labels(stems, [f"{name} ({number})" for number, name in enumerate(stems, start=1)])
    return [labels[arms.index(one)] for one in settings]


def _common_stem(names: Sequence[str]) -> str:
    """What all names begin with, without a seed or a rate at its end."""
    parts = zip(*(re.split(r"(?=[-_.])", name) for name in names), strict=False)
    common = itertools.takewhile(lambda each: len(set(each)) == 1, parts)
    stem, before = "".join(each[0] for each in common), None
    while stem != before:
        before, stem = stem, _OF_A_CELL.sub("", stem)
    return stem


def _scenarios(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A label for the scenario of each run, from its stresses and the step at which it branches off."""
    keys = [json.dumps([config.get("stress") or [], _branch_step(config)], sort_keys=True) for config in configs]
    labels: dict[str, str] = {}
    for key, config in zip(keys, configs, strict=True):
        if key not in labels:
            kinds = "+".join(str(fault.get("kind")) for fault in config.get("stress") or [])
            name = kinds or (CALM if _branch_step(config) is None else f"branch at {_branch_step(config)}")
            taken = set(labels.values())
            numbered = itertools.chain([name], (f"{name} ({number})" for number in itertools.count(2)))
            labels[key] = next(label for label in numbered if label not in taken)
    return [labels[key] for key in keys]


def _is_directory(path: str) -> bool:
    return os.path.isdir(path)  # noqa: PTH112  (Path.is_dir raises for impossible names)


def _parent_name(config: Mapping[str, Any]) -> str | None:
    """The directory's name of the run that a branch begins at."""
    place = config.get("branch_from")
    return None if place is None else Path(str(place).rpartition("@")[0]).name


def _branch_step(config: Mapping[str, Any]) -> str | None:
    place = config.get("branch_from")
    return None if place is None else str(place).rpartition("@")[2]


def _number(config: Mapping[str, Any], key: str) -> float | None:
    section = config.get("optimizer")
    value = section.get(key) if isinstance(section, Mapping) else None
    return float(value) if isinstance(value, int | float) else None

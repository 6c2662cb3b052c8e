"""From a suite file to its runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError
from record.suite import PlannedRun, SuitePlan

from .file import Scenario, Suite


@dataclass(frozen=True)
class SuiteRun:
    """A run of a suite, and how it is started."""

    planned: PlannedRun
    overrides: tuple[str, ...]
    """Of the suite's recipe, with name and output_dir."""
    parent: str | None = None
    """The run of whose checkpoint it is a branch."""
    parent_step: int = 0

    @property
    def name(self) -> str:
        """Of its directory."""
        return self.planned.name


def expand(suite: Suite, out: Path) -> list[SuiteRun]:
    """All runs, in the order in which they are started: those of a seed before those of the next, and in each the scenarios in
    their order. So whatever is done at any time compares as many seeds as possible.

    Raises InputError if two runs would have one name, or if a branch has no run to begin from.
    """
    arms: dict[str, list[str]] = dict(suite.arms)
    if suite.control_seeds:
        arms[suite.control_arm] = suite.arms[suite.baseline_arm]
    scenarios: list[tuple[str | None, Scenario]] = [*suite.scenarios.items()] or [(None, Scenario())]
    runs = [
        _run(out, PlannedRun("", arm, name, rate, seed), [*suite.overrides, *overrides, *scenario.overrides], scenario)
        for number in range(len(suite.seeds) or 1)
        for name, scenario in scenarios
        for rate in dict.fromkeys(rate for arm in arms for rate in _rates(suite, scenario, arm))
        for arm, overrides in arms.items()
        if rate in _rates(suite, scenario, arm)
        for seed in _seeds(suite, scenario, arm, number)
    ]
    names = [run.name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    orphans = [
        f"{run.name}: begins at a run that the suite does not have, {run.parent}"
        for run in runs
        if run.parent is not None and run.parent not in names
    ]
    if twice or orphans:
        raise InputError(*(f"{name}: the name of two runs; rename an arm or a scenario" for name in twice), *orphans)
    return runs


def plan(suite: Suite, runs: list[SuiteRun]) -> SuitePlan:
    """What analyses know of a suite."""
    control = suite.control_arm if suite.control_seeds else None
    return SuitePlan(suite.baseline_arm, control, tuple(run.planned for run in runs))


def run_name(arm: str, scenario: str | None, rate: float | None, seed: int | None) -> str:
    """Of a run's directory: what the suite varies, joined."""
    parts = [arm, scenario, None if rate is None else f"lr{rate:g}", None if seed is None else f"seed{seed}"]
    return "_".join(part for part in parts if part is not None)


def _rates(suite: Suite, scenario: Scenario, arm: str) -> list[float | None]:
    """Of an arm in a scenario; None: the recipe's."""
    if scenario.rates is not None:
        return [*scenario.rates] or [None]
    return [*suite.arm_rates.get(_source(suite, arm), suite.rates)] or [None]


def _source(suite: Suite, arm: str) -> str:
    """The arm whose settings an arm has: the control the baseline's."""
    return suite.baseline_arm if suite.control_seeds and arm == suite.control_arm else arm


def _seeds(suite: Suite, scenario: Scenario, arm: str, number: int) -> list[int | None]:
    """The ``number``-th seed of an arm in a scenario (None: the recipe's); empty if the suite or the scenario leaves it out."""
    source = _source(suite, arm)
    if scenario.arms is not None and source not in scenario.arms:
        return []
    if not suite.seeds:
        return [None]
    restrictions = (scenario.seeds, suite.arm_seeds.get(source))
    if any(seeds is not None and suite.seeds[number] not in seeds for seeds in restrictions):
        return []
    return [suite.seeds[number] if source == arm else suite.control_seeds[number]]


def _run(out: Path, of: PlannedRun, overrides: list[str], scenario: Scenario) -> SuiteRun:
    planned = PlannedRun(run_name(of.arm, of.scenario, of.rate, of.seed), of.arm, of.scenario, of.rate, of.seed)
    own = [f"output_dir={json.dumps(str(out))}", f"name={json.dumps(planned.name)}", *overrides]
    own += [] if of.rate is None else [f"optimizer.lr={of.rate!r}"]
    own += [] if of.seed is None else [f"seed={of.seed}"]
    if scenario.branch_from is None:
        return SuiteRun(planned, tuple(own))
    origin, _, step = scenario.branch_from.rpartition("@")
    parent = run_name(of.arm, origin, of.rate, of.seed)
    own.append(f"branch_from={json.dumps(f'{out / parent}@{step}')}")
    return SuiteRun(planned, tuple(own), parent, int(step))

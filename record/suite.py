"""What a suite has planned: which run is which arm, scenario, rate and seed. It is suite.json in the suite's directory."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import InputError
from common.files import write_json

PLAN_FILE = "suite.json"


@dataclass(frozen=True)
class PlannedRun:
    """One run of a suite."""

    name: str
    """Of its directory, within the suite's."""
    arm: str
    scenario: str | None
    """None if the suite has no scenarios."""
    rate: float | None
    """Peak learning rate; None if the suite leaves it to the recipe."""
    seed: int | None
    """None if the suite leaves it to the recipe."""


@dataclass(frozen=True)
class SuitePlan:
    """All runs of a suite, and which of its arms are special."""

    baseline: str
    """The arm that the others are compared with."""
    control: str | None
    """The arm that is the baseline again, with other seeds: what differs between the two is noise."""
    runs: tuple[PlannedRun, ...]


def write_plan(directory: Path, plan: SuitePlan) -> None:
    """Write suite.json."""
    write_json(directory / PLAN_FILE, asdict(plan))


def read_plan(directory: Path) -> SuitePlan | None:
    """The suite's plan; None if ``directory`` is not a suite's. Raises InputError if the plan cannot be read."""
    file = directory / PLAN_FILE
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        runs = tuple(PlannedRun(**run) for run in found["runs"])
        return SuitePlan(found["baseline"], found["control"], runs)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{file}: cannot be read ({error}); run_suite.py with the suite's file writes it again"
        ) from None

"""Training the runs of a finding and computing what it measures, both only where missing, with the CPU time they took.

OUT/runs/FOLDER/seedN/NAME/          a run directory
OUT/runs/FOLDER/cpu_seconds.json     by seedN/NAME
OUT/measured/FOLDER/seedN.json       what a finding has measured without runs, and its CPU time
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.command import EXIT_DIVERGED, EXIT_FINISHED
from common.errors import InputError
from common.files import strict, write_json
from configs.load import load_config
from configs.schema import RunConfig
from record.finished import Run, load_run

from ..stresses.arms import ROOT, has_ended
from .base import Finding, Seed

RECIPE = ROOT / "configs" / "reproduce.yaml"
CPU_SECONDS = "cpu_seconds.json"
_OWN: Any = {"output_dir": True, "data": {"cache_dir"}}
"""Where a run lies, and not what it is."""


def complete(finding: Finding, seeds: int, out: Path, overrides: Sequence[str] = ()) -> list[Seed]:
    """Every seed's runs and measurements, of which those that are missing in ``out`` are made."""
    plan = {f"seed{seed}/{name}": list(own) for seed, name, own in _planned(finding, seeds, out)}
    train_runs({name: [*overrides, *own] for name, own in plan.items()}, RECIPE, runs_folder(finding, out))
    found = []
    for seed in range(seeds):
        measured = _measured(finding, seed, out, overrides)
        found.append(Seed(seed, _loaded(finding, seed, out), measured))
    return found


def runs_folder(finding: Finding, out: Path) -> Path:
    """Where a finding's runs are."""
    return out / "runs" / (finding.folder or finding.key)


def train_runs(runs: Mapping[str, Sequence[str]], recipe: Path, out: Path) -> None:
    """Train each run in ``out``/name with its overrides of the recipe, unless it has ended already. Raises InputError for one
    that ended with other settings, and for one that stopped before its end."""
    for name, overrides in runs.items():
        directory = out / name
        own = [f"name={directory.name}", f"output_dir={json.dumps(str(directory.parent))}"]
        config = load_config(recipe, [*overrides, *own])
        if has_ended(directory):
            _refuse_others(directory, config)
            continue
        before = time.process_time()
        try:
            status = _train(config)
        finally:
            _add(out / CPU_SECONDS, name, time.process_time() - before)
        if status not in (EXIT_FINISHED, EXIT_DIVERGED):
            raise InputError(f"{directory}: stopped with exit status {status}; the same command goes on with it")


def cpu_minutes(finding: Finding, seeds: int, out: Path) -> float:
    """What all that the finding reads has taken, also if another finding reads it too."""
    file = runs_folder(finding, out) / CPU_SECONDS
    taken = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    seconds = sum(taken.get(f"seed{seed}/{name}", 0.0) for seed in range(seeds) for name in finding.runs())
    for seed in range(seeds):
        if (measured := _measured_file(finding, seed, out)).exists():
            seconds += json.loads(measured.read_text(encoding="utf-8"))["cpu_seconds"]
    return float(seconds / 60)


def _planned(finding: Finding, seeds: int, out: Path) -> Iterator[tuple[int, str, list[str]]]:
    for seed in range(seeds):
        folder = runs_folder(finding, out) / f"seed{seed}"
        for name, overrides in finding.runs().items():
            yield seed, name, [f"seed={seed}", *(each.replace("$RUNS", str(folder)) for each in overrides)]


def _train(config: RunConfig) -> int:
    from accelerate.state import AcceleratorState  # they take seconds to import

    from training.loop import run_training

    AcceleratorState._reset_state(reset_partial_state=True)
    return run_training(config)


def _refuse_others(directory: Path, config: RunConfig) -> None:
    before = load_config(directory / "config.yaml", recorded=True)
    if before.model_dump(exclude=_OWN) != config.model_dump(exclude=_OWN):
        raise InputError(f"{directory} was trained with other settings; remove it, or give another --out")


def _add(file: Path, name: str, seconds: float) -> None:
    taken = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    write_json(file, taken | {name: taken.get(name, 0.0) + seconds})


def _loaded(finding: Finding, seed: int, out: Path) -> dict[str, Run]:
    return {name: load_run(runs_folder(finding, out) / f"seed{seed}" / name) for name in finding.runs()}


def _measured_file(finding: Finding, seed: int, out: Path) -> Path:
    return out / "measured" / (finding.folder or finding.key) / f"seed{seed}.json"


def _measured(finding: Finding, seed: int, out: Path, overrides: Sequence[str]) -> Any:
    file = _measured_file(finding, seed, out)
    if not file.exists():
        before = time.process_time()
        value = finding.measure(seed, overrides)
        if value is None:
            return None
        write_json(file, strict({"measured": value, "cpu_seconds": time.process_time() - before}))
    return json.loads(file.read_text(encoding="utf-8"))["measured"]

"""Read a run directory: configuration, metrics, events, status and checkpoints."""

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml

from common.errors import InputError

from .rows import BRANCH_FOLDER, BRANCH_ROWS
from .table import LAST_STEP, NON_FINITE, json_lines, read_table, refuse_special, steps_joined

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What train_lm.py accepts as a run's name."""
_SPIKE_STEPS = ("start_step", "peak_step", "end_step")
_SPIKE_NUMBERS = ("height", "sigmas")
_STEP_DIRECTORY = re.compile(r"step_(\d+)")
Wanted = Callable[[str], bool]
"""Says by a metric's name whether it is needed."""


@dataclass(frozen=True)
class Run:
    """The contents of one run directory."""

    path: Path
    name: str
    config: dict[str, Any]
    metrics: pd.DataFrame
    """Float64 columns indexed by step, ascending. NaN where a step has no value; see :attr:`non_finite`."""
    non_finite: dict[str, npt.NDArray[np.int64]]
    """For each metric, the steps at which the run wrote NaN or an infinity (rather than nothing)."""
    events: list[dict[str, Any]]
    status: dict[str, Any]

    def series(self, key: str) -> pd.Series:
        """The values written for ``key``, NaN and infinities included; empty if there are none."""
        if key not in self.metrics:
            return pd.Series(dtype="float64", index=pd.Index([], dtype="int64", name="step"))
        values, steps = self.metrics[key].to_numpy(), self.metrics.index
        written = ~np.isnan(values)
        if key in self.non_finite:
            written[np.searchsorted(steps, self.non_finite[key])] = True
        return pd.Series(values[written], steps[written], name=key)

    def value(self, key: str, step: int) -> float | None:
        """The value written for ``key`` at ``step``, NaN and infinities included; None if there is none."""
        if step not in self.metrics.index:
            return None
        if key == "step":
            return float(step)
        value = float(self.metrics[key][step]) if key in self.metrics else math.nan
        return None if math.isnan(value) and step not in self.non_finite.get(key, ()) else value

    def spikes(self, signal: str) -> list[dict[str, Any]]:
        """The spike events on ``signal``."""
        return [event for event in self.events if event.get("event") == "spike" and event.get("signal") == signal]

    def setting(self, section: str, key: str) -> Any:
        """``config[section][key]``, or None."""
        values = self.config.get(section)
        return values.get(key) if isinstance(values, dict) else None


def load_run(path: str | Path, *, with_parent_rows: bool = False, wanted: Wanted | None = None) -> Run:
    """Read a run directory, or the run that a checkpoint directory belongs to.

    Requires config.yaml, status.json and metrics.jsonl with at least one complete row; events.jsonl is optional. Several
    rows of one step are merged (:func:`record.table.read_table`). ``with_parent_rows``: of a branch, put the last rows before
    the step at which it begins, which it has copied from the run it comes from, before its own. ``wanted``: the metrics to
    keep; all by default. Raises :class:`InputError`, one line, if something cannot be read.
    """
    directory = run_directory(path)
    config = read_config(directory)
    metrics, non_finite = read_metrics(run_file(directory, "metrics.jsonl"), wanted)
    if with_parent_rows and (before := parent_rows(directory)) is not None:
        earlier, odd = read_metrics(before, wanted)
        metrics, non_finite = pd.concat([earlier, metrics]), steps_joined(odd, non_finite)
    events_file = run_file(directory, "events.jsonl")
    return Run(
        path=directory,
        name=_name_of(directory, config),
        config=config,
        metrics=metrics,
        non_finite=non_finite,
        events=[_event(events_file, *line) for line in json_lines(events_file)] if events_file.exists() else [],
        status=_read_status(run_file(directory, "status.json")),
    )


def read_config(run: Path) -> dict[str, Any]:
    """A run directory's configuration. Raises :class:`InputError`, one line, if it cannot be read."""
    path = run_file(run, "config.yaml")
    try:
        config = yaml.safe_load(_read_text(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # an integer of 5000 digits; brackets 5000 deep
        raise InputError(f"{path} is not valid YAML; restore the file or start the run again") from error
    if not isinstance(config, dict) or not config:
        raise InputError(f"{path} holds no configuration; restore the file or start the run again")
    return config


def run_file(run: Path, name: str) -> Path:
    """Path of one of a run's files. Raises :class:`InputError` for a link that leads out of the run directory."""
    path = run / name
    if path.is_symlink() and not is_within(path, run):
        raise InputError(f"{path} is a link that leads out of the run directory; put the file itself there")
    return path


def is_within(path: Path, folder: Path) -> bool:
    """Whether ``path``, with links resolved, lies in ``folder``."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a link that leads to itself
        return False


def is_file(path: Path) -> bool:
    """Whether ``path`` is a file; False for impossible names, for which ``Path.is_file`` raises."""
    return os.path.isfile(path)  # noqa: PTH113


def _as_directory(path: str | Path) -> Path:
    if not os.path.isdir(path):  # noqa: PTH112  (Path.is_dir raises for impossible names)
        raise InputError(f"{path} is not a directory; give a run directory or a checkpoint directory")
    return Path(path)


def run_directory(path: str | Path) -> Path:
    """The run directory that ``path`` is, or that the checkpoint ``path`` belongs to."""
    path = _as_directory(path)
    for candidate in (path, path.absolute().parent.parent):
        if (candidate / "config.yaml").is_file() and (candidate == path or _is_checkpoint(path)):
            return candidate
    raise InputError(f"{path} has no config.yaml and belongs to no run; give a directory that train_lm.py has written")


def resolve_checkpoint(path: str | Path) -> Path:
    """The checkpoint ``path``, or the last complete checkpoint of the run directory ``path``. Complete means config.json
    and weights in safetensors, in shards or not. Raises :class:`InputError` if there is none."""
    path = _as_directory(path)
    if _is_checkpoint(path):
        return path
    found = checkpoints_of(path)
    if not found:
        raise InputError(
            f"{path} has no complete checkpoint (checkpoints/step_*/ with config.json and model.safetensors); "
            "train with checkpoint.every, or name a checkpoint directory"
        )
    return found[-1][1]


def checkpoints_of(run: Path) -> list[tuple[int, Path]]:
    """(step, directory) of each complete checkpoint of a run, by step; links to elsewhere are skipped."""
    folder = run / "checkpoints"
    found = []
    for entry in folder.iterdir() if folder.is_dir() else ():
        match = _STEP_DIRECTORY.fullmatch(entry.name)
        if match and is_within(entry, folder) and _is_checkpoint(entry):
            found.append((int(match[1]), entry))
    return sorted(found)


def checkpoint_state(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's trainer_state.json; empty if it cannot be read."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


def unique_labels(names: Sequence[str], paths: Sequence[str | Path]) -> list[str]:
    """A label for each run: its name, or its path if names coincide, numbered if paths coincide too."""
    base = [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
    return [
        label if label not in base[:index] else f"{label} ({base[:index].count(label) + 1})"
        for index, label in enumerate(base)
    ]


def load_runs(paths: Sequence[str | Path]) -> dict[str, Run]:
    """Read several runs, keyed by unique label in the order given; reports all problems at once."""
    runs: list[Run] = []
    problems: list[str] = []
    for path in paths:
        try:
            runs.append(load_run(path))
        except InputError as error:
            problems.extend(error.problems)
    if problems:
        raise InputError(*problems)
    return dict(zip(unique_labels([run.name for run in runs], paths), runs, strict=True))


def read_metrics(path: Path, wanted: Wanted | None = None) -> tuple[pd.DataFrame, dict[str, npt.NDArray[np.int64]]]:
    """Read metrics.jsonl: (float64 columns indexed by step, steps with non-finite values for each metric). ``wanted``: of which
    metrics there are columns; those of a long run take time and memory.

    Raises :class:`InputError` naming file and line for a torn line that is not the last, a row without a step or a value
    that is not a number.
    """
    table = read_table(path)
    # No copy: consolidating the columns would need twice the memory.
    columns = {name: table.columns[name] for name in table.columns if wanted is None or wanted(name)}
    return pd.DataFrame(columns, pd.Index(table.steps, name="step"), copy=False), table.non_finite


def parent_rows(run: Path) -> Path | None:
    """The file of the rows before the step at which a branch begins; None if the run is no branch or has none."""
    path = run_file(run, f"{BRANCH_FOLDER}/{BRANCH_ROWS}")
    return path if path.exists() and path.stat().st_size else None


def _read_text(path: Path) -> str:
    refuse_special(path)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; the run is half-written: start it again, or name another run") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text; restore the file or start the run again") from error


def _read_status(path: Path) -> dict[str, Any]:
    try:
        status = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON; restore the file or start the run again") from error
    word = status.get("status") if isinstance(status, dict) else None
    if not isinstance(word, str) or not word.isprintable():
        raise InputError(f"{path} has no text under 'status'; restore the file or start the run again")
    return dict(status)


def _name_of(run: Path, config: dict[str, Any]) -> str:
    name = config.get("name")
    if name is None:
        return run.absolute().name
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(f"{run / 'config.yaml'}: name: {str(name)[:80]!r} is no name of a run; restore the file")
    return name


def _event(path: Path, number: int, row: dict[str, Any]) -> dict[str, Any]:
    """Check an event: a spike's steps must be whole numbers, its height and sigmas numbers. Raises :class:`InputError`
    naming the line and the key."""
    if not isinstance(row.get("event"), str):
        raise InputError(f"{path} line {number} has no text under 'event'; remove the line")
    if row["event"] != "spike":
        return row
    wrong = [] if isinstance(row.get("signal"), str) else ["signal"]
    wrong += [key for key in _SPIKE_STEPS if type(row.get(key)) is not int or not 0 <= row[key] <= LAST_STEP]
    numbers = {key: row.get(key) for key in _SPIKE_NUMBERS}
    numbers = {key: NON_FINITE.get(v.lower(), v) if isinstance(v, str) else v for key, v in numbers.items()}
    wrong += [key for key, value in numbers.items() if not isinstance(value, int | float | None) or value is True]
    if wrong:
        raise InputError(
            f"{path} line {number}: the {' and '.join(wrong)} of the spike cannot be read; remove the line"
        )
    return {**row, **numbers}


def _is_checkpoint(path: Path) -> bool:
    weights = ("model.safetensors", "model.safetensors.index.json", "shards.json")
    return (path / "config.json").is_file() and any((path / name).is_file() for name in weights)

"""Run directories and the logs of other tools, read as one: what analysis.curves, analysis.spikes and analysis.summary take."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import pandas as pd

from analysis.spikes.find import Series, find_all, find_watched
from common.command import ArgumentParser
from common.errors import InputError, one_line
from record.finished import Run, Wanted, load_run, parent_rows, read_config, run_directory, run_file, unique_labels
from record.logs.base import Log
from record.logs.columns import BY_KEY, parse_columns, parse_kinds
from record.logs.folders import logs_in
from record.logs.read import Source, read_logs
from record.table import Table, joined, read_table

T = TypeVar("T")
_OWN = ("metrics.jsonl", "status.json", "events.jsonl")
"""Files by which a folder is a run directory, even if others are missing."""
RUN_OR_LOG = "run directory or log: JSONL, CSV, parquet, trainer_state.json, TensorBoard, W&B, Lightning, console"


@dataclass(frozen=True)
class LogRun(Run):
    """A log as a run without a configuration: columns with a role have this project's names, spikes were found afterwards."""

    log: Log

    def column(self, metric: str) -> str:
        """The log's column that is this metric; an unknown metric is itself."""
        return next((column for key, column in self.log.roles.items() if BY_KEY[key].metric == metric), metric)


def add_columns_option(parser: ArgumentParser) -> None:
    """The option ``--columns``."""
    parser.add_argument(
        "--columns", nargs="+", default=[], metavar="ROLE=COLUMN",
        help=f"columns of logs, where their names are not known: ROLE is one of {', '.join(BY_KEY)}",
    )  # fmt: skip


def load_runs_and_logs(
    paths: Sequence[str], columns: Sequence[str] = (), wanted: Wanted | None = None
) -> dict[str, Run]:
    """Read run directories (or checkpoints in them) and logs, keyed by unique label in the order given. ``wanted``: the metrics
    of run directories to keep.

    Prints what was taken for what, a line a log. Raises :class:`InputError` with every problem.
    """
    named: list[tuple[str, str, Run | Log]] = []
    for path, found in _read(paths, columns, partial(load_run, wanted=wanted)):
        if isinstance(found, Source):
            named += [(log.label, path, log) for log in found.logs]
        else:
            named.append((found.name, path, found))
    labels = unique_labels([name for name, _, _ in named], [path for _, path, _ in named])
    return {
        label: as_run(found, label) if isinstance(found, Log) else found
        for label, (_, _, found) in zip(labels, named, strict=True)
    }


def load_series(paths: Sequence[str], columns: Sequence[str] = (), kinds: Sequence[str] = ()) -> list[Series]:
    """The same, but of run directories only what config.yaml and metrics.jsonl have. ``kinds``: KIND=COLUMN arguments."""
    judged = parse_kinds(kinds)
    named: list[tuple[str, str, Table, int, Log | None, int]] = []
    for path, found in _read(paths, columns, _metrics):
        if isinstance(found, Source):
            named += [(log.label, path, log.table, 0, log, 0) for log in found.logs]
        else:
            name, table, warmup, history_to = found
            named.append((name, path, table, warmup, None, history_to))
    labels = unique_labels([one[0] for one in named], [one[1] for one in named])
    return [
        Series(label, table, warmup, log, judged, history_to)
        for label, (_, _, table, warmup, log, history_to) in zip(labels, named, strict=True)
    ]


def as_run(log: Log, label: str) -> LogRun:
    """A log as a run: columns with a role under this project's names, and the spikes of the default detector."""
    names = {column: BY_KEY[key].metric for key, column in log.roles.items()}
    others = {name: name for name in log.table.columns if name not in names and name not in names.values()}
    columns = {
        name: log.table.columns[column] for column, name in (names | others).items() if column in log.table.columns
    }
    non_finite = {(names | others)[c]: steps for c, steps in log.table.non_finite.items() if c in names or c in others}
    series = Series(label, log.table, log=log)
    events = [
        {"event": found.event.kind} | found.row() | {"signal": series.metric(found.event.signal)}
        for found in [
            *(found for column in series.default_signals for found in find_watched(series, column)[0]),
            *(found for column in series.saturable for found in find_all(series, column, "saturated")[0]),
        ]
    ]
    metrics = pd.DataFrame(columns, pd.Index(log.table.steps, name="step"), copy=False)
    return LogRun(log.path, label, {}, metrics, non_finite, events, {}, log)


def warmup_steps(run: Path) -> int:
    """The number of warm-up steps in a run's configuration."""
    optimizer = read_config(run).get("optimizer")
    steps = optimizer.get("warmup_steps", 0) if isinstance(optimizer, dict) else 0
    if type(steps) is not int:
        raise InputError(
            f"{run / 'config.yaml'}: optimizer.warmup_steps: {steps!r} is no number of steps; restore the file"
        )
    return steps


def _metrics(path: Path) -> tuple[str, Table, int, int]:
    """Name and metrics of a run directory, its warm-up, and the step up to which they are those of the run that it comes from."""
    run = run_directory(path)
    own = read_table(run_file(run, "metrics.jsonl"), foreign=True)
    before = parent_rows(run)
    if before is None:
        return run.absolute().name, own, warmup_steps(run), 0
    parent = read_table(before, foreign=True)
    return run.absolute().name, joined(parent, own), warmup_steps(run), int(parent.steps[-1])


def _read(paths: Sequence[str], columns: Sequence[str], read_run: Callable[[Path], T]) -> list[tuple[str, Source | T]]:
    """For each path what is there: a log, or what ``read_run`` makes of a run directory."""
    chosen = parse_columns(columns)
    found: list[tuple[str, Source | T]] = []
    problems: list[str] = []
    for path in paths:
        try:
            found.append((path, read_run(Path(path)) if _is_run(Path(path)) else read_logs(Path(path), chosen)))
        except InputError as error:
            problems.extend(error.problems)
    sources = [one for _, one in found if isinstance(one, Source)]
    taken = {(key, column) for source in sources for log in source.logs for key, column in log.roles.items()}
    if not problems:
        problems = [
            f"--columns {key}={column}: no log has a column of this name"
            for key, column in chosen.items()
            if (key, column) not in taken
        ]
    if problems:
        raise InputError(*problems)
    for source in sources:
        print(one_line(source.told))
    return found


def _is_run(path: Path) -> bool:
    """Whether a path is a run directory, or a checkpoint in one, rather than a log or a folder with a log; a damaged one too."""
    if not os.path.isdir(path):  # noqa: PTH112  (no error for odd names)
        return False
    try:
        directory = run_directory(path)
    except InputError:
        directory = path
    if any(os.path.lexists(directory / name) for name in _OWN):
        return True
    try:
        logs_in(path)
    except InputError:
        return directory != path or (path / "config.yaml").is_file()
    return False

"""Spikes and other events in finished runs, by any detector, with their precursors.

    python -m analysis.spikes RUN|metrics.jsonl... [--detector NAME|all] [--signal NAME ...] --out DIR

RUN is a run directory. A file of rows, from any project, needs "step" and the signals; a step may have several rows, for
example one of training and one of evaluation. Prints a table and writes DIR/events.json and DIR/spikes.png. Detectors see every
value as logged, in the order of the steps, not smoothed. As during the run, norms and update sizes count from the end of the
warm-up on; a bare file has no known warm-up.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.show import style
from analysis.show.style import Floats
from analysis.show.tables import terminal_table
from analysis.show.text import first_of, skipped_lines
from common.command import ArgumentParser, exit_status
from common.errors import InputError
from common.files import write_json
from record.finished import is_file, read_config, run_directory, run_file, unique_labels
from record.table import Table, read_table
from stability.detect.base import Detector
from stability.detect.baseline import falls
from stability.detect.catalogue import DEFAULT, DETECTORS, detect_rows, detect_series, judged_from, make_detector
from stability.detect.events import Event, Rise, Spike
from stability.detect.precursors import LOOK_BACK, precursors
from stability.detect.published import Olmo2
from stability.detect.stall import LOGITS, StallRule

from .figure import draw_spikes

SIGNALS = ("loss/nll", "grad_norm/total")
"""Default signals, where they exist."""
FOR_LOSSES = ("level", "stall")
"""Detectors of what is a fault in a loss only."""
PRINTED_PRECURSORS = 4


@dataclass(frozen=True)
class Series:
    """The metrics of one run."""

    label: str
    table: Table
    warmup_steps: int = 0

    def values(self, name: str) -> tuple[Floats, Floats]:
        """Steps and values at which ``name`` was logged, NaN and infinities included."""
        written = self.table.written(name)
        return self.table.steps[written].astype(np.float64), self.table.columns[name][written]

    def rows(self, names: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Each step with those of the named metrics that were logged at it."""
        columns = {n: (self.table.columns[n], self.table.written(n)) for n in names if n in self.table.columns}
        for place, step in enumerate(self.table.steps.tolist()):
            logged = {n: values[place].item() for n, (values, written) in columns.items() if written[place]}
            yield {"step": step} | logged


@dataclass(frozen=True)
class Found:
    """An event in a run, with its precursors if it is a spike."""

    run: str
    event: Event
    precursors: list[dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(prog="python -m analysis.spikes", description="Spikes in finished runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN|metrics.jsonl")
    parser.add_argument(
        "--detector",
        default=DEFAULT,
        help=f"all, or one of {', '.join(DETECTORS)} (default: {DEFAULT}, and level for losses)",
    )
    parser.add_argument(
        "--signal", nargs="+", help=f"columns to look at (default: {' and '.join(SIGNALS)}, where written)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for events.json and spikes.png")
    options = parser.parse_args(arguments)
    if options.detector not in (*DETECTORS, "all"):
        raise InputError(f"--detector {options.detector}: no such detector; give all or one of {', '.join(DETECTORS)}")
    series = load_series(options.runs)
    signals = {one.label: _signals(one, options.signal) for one in series}
    chosen = {"all": list(DETECTORS), DEFAULT: [DEFAULT, "level"]}
    detectors = chosen.get(options.detector, [options.detector])
    found = []
    for one in series:
        for signal in signals[one.label]:
            for name in detectors:
                if name not in FOR_LOSSES or falls(signal):
                    detector = make_detector(name, signal)
                    found += find_events(one, detector)
                    if isinstance(detector, Olmo2):
                        score = f"{detector.score:.3%} of {detector.seen} values"
                        print(f"OLMo 2 spike score of {one.label}, {signal}: {score}")
    _print_table(series, signals, found)
    curves = {(one.label, signal): one.values(signal) for one in series for signal in signals[one.label]}
    with style.look():
        figure = draw_spikes(curves, [(f.run, f.event) for f in found], detectors)
        style.save_figure(figure, options.out / "spikes.png")
    events = [{"run": f.run, "kind": f.event.kind} | f.event.event() | {"precursors": f.precursors} for f in found]
    write_json(options.out / "events.json", events)
    print(f"written to {options.out}: events.json, spikes.png")


def load_series(paths: Sequence[str]) -> list[Series]:
    """The metrics of run directories and of files of rows, labelled. Raises :class:`InputError` with every problem.

    A file may come from another project (``foreign`` in :func:`record.table.read_table`).
    """
    names: list[str] = []
    loaded: list[tuple[Table, int]] = []
    problems: list[str] = []
    for path in map(Path, paths):
        try:
            if not (bare := is_file(path)) and not os.path.isdir(path):  # noqa: PTH112  (no error for odd names)
                raise InputError(
                    f"{path} is neither a directory nor a file; give a run directory, or a file of rows such as metrics.jsonl"
                )
            file = path if bare else run_file(run_directory(path), "metrics.jsonl")
            names.append(file.absolute().parent.name if file.name == "metrics.jsonl" else file.stem)
            loaded.append((read_table(file, foreign=True), 0 if bare else warmup_steps(file.parent)))
        except InputError as error:
            problems.extend(error.problems)
    if problems:
        raise InputError(*problems)
    return [Series(label, *one) for label, one in zip(unique_labels(names, paths), loaded, strict=True)]


def warmup_steps(run: Path) -> int:
    """The number of warm-up steps in a run's configuration."""
    optimizer = read_config(run).get("optimizer")
    steps = optimizer.get("warmup_steps", 0) if isinstance(optimizer, dict) else 0
    if type(steps) is not int:
        raise InputError(
            f"{run / 'config.yaml'}: optimizer.warmup_steps: {steps!r} is no number of steps; restore the file"
        )
    return steps


def _signals(series: Series, given: Sequence[str] | None) -> list[str]:
    """The signals to examine in a run: the given ones, or those of the default ones that it has."""
    names = sorted(series.table.columns)
    if not names:
        raise InputError(
            f"{series.label} has no numbers besides its steps; a number in quotes is text: remove the quotes"
        )
    missing = [signal for signal in given or () if signal not in names]
    signals = list(given or [signal for signal in SIGNALS if signal in names])
    if missing or not signals:
        lacks = ", ".join(missing) if missing else f"neither {' nor '.join(SIGNALS)}"
        raise InputError(f"{series.label} has {'no ' * bool(missing)}{lacks}; --signal takes one of {', '.join(names)}")
    return signals


def find_events(series: Series, detector: Detector) -> list[Found]:
    """The events that ``detector`` finds in a run, in the order in which they end."""
    if isinstance(detector, StallRule):
        events = detect_rows(detector, series.rows(dict.fromkeys([detector.signal, *LOGITS])))
    else:
        written = series.table.written(detector.signal)
        written &= series.table.steps >= judged_from(detector, series.warmup_steps)
        values = series.table.columns[detector.signal][written]
        events = detect_series(detector, series.table.steps[written], values)
    return [
        Found(series.label, event, _precursors(event, series.table) if isinstance(event, Spike) else [])
        for event in events
    ]


def _precursors(spike: Spike, table: Table) -> list[dict[str, Any]]:
    """The spike's precursors among all metrics."""
    before, after = np.searchsorted(table.steps, [spike.start_step - LOOK_BACK, spike.start_step + 1])
    window = slice(int(before), int(after))
    columns = {name: table.columns[name][window].tolist() for name in sorted(table.columns)}
    return [asdict(p) for p in precursors(spike, table.steps[window].tolist(), columns)]


def _print_table(series: Sequence[Series], signals: dict[str, list[str]], found: Sequence[Found]) -> None:
    header = ["run", "signal", "detector", "event", "steps", "peak", "height", "sigmas", "recovered"]
    rows = [_cells(f) for f in found]
    print(terminal_table(header, rows) if rows else "no events")
    for f in found:
        if f.precursors:
            named = [f"{p['signal']} ({p['lead_steps']} steps, {p['sigmas']:+.0f} sigma)" for p in f.precursors]
            before = first_of(named, PRINTED_PRECURSORS)
            print(f"before {f.run}, {f.event.signal}, step {f.event.start_step} ({f.event.detector}): {before}")
    for one in series:
        for signal in signals[one.label]:
            count = int((~np.isfinite(one.values(signal)[1])).sum())
            if count:
                print(f"{one.label}, {signal}: {count} values are not finite (--detector non_finite lists them)")
        for line in skipped_lines(one.table.columns, one.table.steps):
            print(f"{one.label}: {line}")


def _cells(found: Found) -> list[str]:
    event = found.event
    steps = f"{event.start_step}" + (f" to {event.end_step}" if event.end_step > event.start_step else "")
    peak, sigmas, recovered = ("", "", "")
    if isinstance(event, Rise):
        steps, sigmas = f"from {event.start_step}, seen at {event.opened_step}", f"{event.sigmas:.1f}"
    if isinstance(event, Spike):
        peak, sigmas = str(event.peak_step), f"{event.sigmas:.1f}" if event.sigmas else ""
        recovered = "yes" if event.recovered else "no"
    height = "" if event.height is None else f"{event.height:+.3g}"
    return [found.run, event.signal, event.detector, event.kind, steps, peak, height, sigmas, recovered]


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

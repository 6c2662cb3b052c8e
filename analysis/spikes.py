"""Spikes and other events in finished runs, by any detector, with what came before them.

    python -m analysis.spikes RUN|metrics.jsonl... [--detector NAME|all] [--signal NAME ...] --out DIR

RUN is a run directory; a bare file of rows, of any project, needs "step" and the signals. Prints a table, and writes
DIR/events.json (a list of events) and DIR/spikes.png. Detectors see every value as it was written, in the order of the steps;
nothing is smoothed before.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import InputError, exit_status
from stability.detectors import Detector, Event, Olmo2, Spike
from stability.precursors import precursors
from stability.spikes import DEFAULT, DETECTORS, detect_rows, falls, make_detector

from . import style
from .files import write_json
from .runs import LARGEST, LAST_STEP, NON_FINITE, is_file, json_lines, run_directory, run_file, unique_labels
from .spikes_figure import draw_spikes
from .style import Floats
from .tables import terminal_table

SIGNALS = ("loss/nll", "grad_norm/total")
"""Looked at where they exist, if no signal is named."""
PRINTED_PRECURSORS = 4


@dataclass(frozen=True)
class Series:
    """The rows of one run: each has "step" and the numbers that were written at it."""

    label: str
    rows: list[dict[str, Any]]

    @property
    def steps(self) -> list[int]:
        """The steps of all rows, ascending."""
        return [row["step"] for row in self.rows]

    @property
    def names(self) -> list[str]:
        """All metrics that any row has."""
        return sorted({name for row in self.rows for name in row} - {"step"})

    def values(self, name: str) -> tuple[Floats, Floats]:
        """Steps and values where ``name`` was written, NaN and infinities among them."""
        written = [(row["step"], row[name]) for row in self.rows if name in row]
        steps, values = np.array(written, dtype=np.float64).reshape(-1, 2).T
        return steps, values


@dataclass(frozen=True)
class Found:
    """One event of one run; precursors only of spikes."""

    run: str
    event: Event
    precursors: list[dict[str, Any]]

    def record(self) -> dict[str, Any]:
        """What events.json holds of it."""
        return {"run": self.run, "kind": self.event.kind} | self.event.event() | {"precursors": self.precursors}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m analysis.spikes", description="Spikes in finished runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN|metrics.jsonl")
    parser.add_argument(
        "--detector", default=DEFAULT, help=f"all, or one of {', '.join(DETECTORS)} (default: {DEFAULT})"
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
    detectors = list(DETECTORS) if options.detector == "all" else [options.detector]
    found = []
    for one in series:
        for signal in signals[one.label]:
            for name in detectors:
                if name != "stall" or falls(signal):  # logits that grow while a norm stands still mean nothing
                    detector = make_detector(name, signal)
                    found += find_events(one, detector)
                    _print_score(one, detector)
    _print_table(series, signals, found)
    panels = {(one.label, signal): one.values(signal) for one in series for signal in signals[one.label]}
    with style.look():
        figure = draw_spikes(panels, [(f.run, f.event) for f in found], detectors)
        style.save_figure(figure, options.out / "spikes.png")
    write_json(options.out / "events.json", [f.record() for f in found])
    print(f"written to {options.out}: events.json, spikes.png")


def load_series(paths: Sequence[str]) -> list[Series]:
    """The rows of run directories and of bare files, labelled. Raises :class:`InputError` with all that is wrong with any."""
    names: list[str] = []
    rows: list[list[dict[str, Any]]] = []
    problems: list[str] = []
    for path in map(Path, paths):
        try:
            file = path if is_file(path) else run_file(run_directory(path), "metrics.jsonl")
            names.append(file.absolute().parent.name if file.name == "metrics.jsonl" else file.stem)
            rows.append(read_numbers(file))
        except InputError as error:
            problems.extend(error.problems)
    if problems:
        raise InputError(*problems)
    return [Series(label, one) for label, one in zip(unique_labels(names, paths), rows, strict=True)]


def read_numbers(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file, their numbers only, by ascending step; of a step that was written twice the later row.

    Non-finite numbers may be spelled as strict JSON must ("NaN", "Infinity", "-Infinity") or as Python does. Raises
    :class:`InputError` for a row without a whole step, a torn line that is not the last, and a file without rows.
    """
    rows: dict[int, dict[str, Any]] = {}
    for number, row in json_lines(path):
        step = row.get("step")
        if (
            isinstance(step, bool)
            or not isinstance(step, int | float)
            or not (0 <= step <= LAST_STEP and step == int(step))
        ):
            raise InputError(
                f"{path} line {number} has no whole number under 'step'; remove the line or number the rows"
            )
        numbers = {name: _number(value) for name, value in row.items()}
        beyond = [name for name, value in numbers.items() if value is not None and LARGEST < abs(value) < math.inf]
        if beyond:
            raise InputError(f"{path} line {number}: {beyond[0]} is more than a float32 can hold; correct or remove it")
        rows[int(step)] = {name: value for name, value in numbers.items() if value is not None} | {"step": int(step)}
    if not rows:
        raise InputError(f"{path} has no complete row; wait until the run has taken a step, or name another file")
    return [rows[step] for step in sorted(rows)]


def _number(value: Any) -> float | None:
    """The number that ``value`` is or spells; None for anything else, and for an integer beyond any float."""
    if isinstance(value, str):
        return NON_FINITE.get(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _signals(series: Series, asked: Sequence[str] | None) -> list[str]:
    """The signals to look at in one run: those asked for, or the usual ones that it has."""
    names = series.names
    missing = [signal for signal in asked or () if signal not in names]
    signals = list(asked or [signal for signal in SIGNALS if signal in names])
    if missing or not signals:
        lacks = ", ".join(missing) if missing else f"neither {' nor '.join(SIGNALS)}"
        raise InputError(f"{series.label} has {'no ' * bool(missing)}{lacks}; --signal takes one of {', '.join(names)}")
    return signals


def find_events(series: Series, detector: Detector) -> list[Found]:
    """The events that ``detector`` finds in the run, in the order in which they ended, spikes with their precursors."""
    events = detect_rows(detector, series.rows)
    columns = {name: [row.get(name, math.nan) for row in series.rows] for name in series.names} if events else {}
    return [
        Found(
            series.label,
            event,
            [asdict(p) for p in precursors(event, series.steps, columns)] if isinstance(event, Spike) else [],
        )
        for event in events
    ]


def _print_score(series: Series, detector: Detector) -> None:
    if isinstance(detector, Olmo2):
        print(
            f"OLMo 2 spike score of {series.label}, {detector.signal}: {detector.score:.3%} of {detector.seen} values"
        )


def _print_table(series: Sequence[Series], signals: dict[str, list[str]], found: Sequence[Found]) -> None:
    header = ["run", "signal", "detector", "event", "steps", "peak", "height", "sigmas", "recovered"]
    rows = [_cells(f) for f in found]
    print(terminal_table(header, rows) if rows else "no events")
    for f in found:
        if f.precursors:
            print(f"before {f.run}, {f.event.signal}, step {f.event.start_step} ({f.event.detector}): {_before(f)}")
    for one in series:
        for signal in signals[one.label]:
            count = int((~np.isfinite(one.values(signal)[1])).sum())
            if count:
                print(f"{one.label}, {signal}: {count} values are not finite (--detector non_finite lists them)")


def _cells(found: Found) -> list[str]:
    event = found.event
    steps = f"{event.start_step}" + (f" to {event.end_step}" if event.end_step > event.start_step else "")
    peak, sigmas, recovered = ("", "", "")
    if isinstance(event, Spike):
        peak, sigmas = str(event.peak_step), f"{event.sigmas:.1f}" if event.sigmas else ""
        recovered = "yes" if event.recovered else "no"
    height = "" if event.height is None else f"{event.height:+.3g}"
    return [found.run, event.signal, event.detector, event.kind, steps, peak, height, sigmas, recovered]


def _before(found: Found) -> str:
    named = [
        f"{p['signal']} ({p['lead_steps']} steps, {p['sigmas']:+.0f} sigma)"
        for p in found.precursors[:PRINTED_PRECURSORS]
    ]
    return ", ".join(named) + (
        f" and {len(found.precursors) - len(named)} more" if len(found.precursors) > len(named) else ""
    )


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

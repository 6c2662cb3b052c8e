"""Spikes and other events in finished runs, by any detector, with what came before them.

    python -m analysis.spikes RUN|metrics.jsonl... [--detector NAME|all] [--signal NAME ...] --out DIR

RUN is a run directory; a bare file of rows, of any project, needs "step" and the signals. A step may have several rows, say one
of training and one of evaluation. Prints a table, and writes DIR/events.json (a list of events) and DIR/spikes.png. Detectors
see every value as it was written, in the order of the steps; nothing is smoothed before. As in
the run itself, norms and sizes of updates of a run directory are seen from the end of its warm-up on; of a bare file no warm-up
is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.show import style
from analysis.show.style import Floats
from analysis.show.tables import terminal_table
from common.command import ArgumentParser, exit_status
from common.errors import InputError
from common.files import write_json
from record.finished import is_file, read_config, run_directory, run_file, unique_labels
from record.table import Table, read_table
from stability.detect.base import Detector
from stability.detect.baseline import falls
from stability.detect.catalogue import DEFAULT, DETECTORS, detect_rows, detect_series, judged_from, make_detector
from stability.detect.events import Event, Spike
from stability.detect.precursors import LOOK_BACK, precursors
from stability.detect.published import Olmo2
from stability.detect.stall import LOGITS, StallRule

from .figure import draw_spikes

SIGNALS = ("loss/nll", "grad_norm/total")
"""Looked at where they exist, if no signal is named."""
PRINTED_PRECURSORS = 4
ROWS_AT_ONCE = 10_000
"""Rows are much larger than the columns that they are made of."""


@dataclass(frozen=True)
class Series:
    """The numbers of one run."""

    label: str
    table: Table
    warmup_steps: int = 0

    @property
    def names(self) -> list[str]:
        """All metrics that any row has."""
        return sorted(self.table.columns)

    def values(self, name: str) -> tuple[Floats, Floats]:
        """Steps and values where ``name`` was written, NaN and infinities among them."""
        written = self.table.written(name)
        return self.table.steps[written].astype(np.float64), self.table.columns[name][written]

    def rows(self, names: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Each step with those of the named metrics that were written at it."""
        table = self.table
        columns = {name: (table.columns[name], table.written(name)) for name in names if name in table.columns}
        for start in range(0, len(table.steps), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            rows: list[dict[str, Any]] = [{"step": step} for step in table.steps[part].tolist()]
            for name, (values, written) in columns.items():
                for row, value, there in zip(rows, values[part].tolist(), written[part].tolist(), strict=True):
                    if there:
                        row[name] = value
            yield from rows


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
    parser = ArgumentParser(prog="python -m analysis.spikes", description="Spikes in finished runs.")
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
    """The rows of run directories and of bare files, labelled. Raises :class:`InputError` with all that is wrong with any.

    A bare file may be of another project (:func:`record.table.read_table`, ``foreign``).
    """
    names: list[str] = []
    tables: list[Table] = []
    warmups: list[int] = []
    problems: list[str] = []
    for path in map(Path, paths):
        try:
            file = path if is_file(path) else run_file(run_directory(path), "metrics.jsonl")
            names.append(file.absolute().parent.name if file.name == "metrics.jsonl" else file.stem)
            tables.append(read_table(file, foreign=True))
            warmups.append(0 if file == path else warmup_steps(file.parent))
        except InputError as error:
            problems.extend(error.problems)
    if problems:
        raise InputError(*problems)
    return [Series(*one) for one in zip(unique_labels(names, paths), tables, warmups, strict=True)]


def warmup_steps(run: Path) -> int:
    """Over how many steps a run's learning rate warmed up."""
    optimizer = read_config(run).get("optimizer")
    steps = optimizer.get("warmup_steps", 0) if isinstance(optimizer, dict) else 0
    if type(steps) is not int:
        raise InputError(
            f"{run / 'config.yaml'}: optimizer.warmup_steps: {steps!r} is no number of steps; restore the file"
        )
    return steps


def _signals(series: Series, asked: Sequence[str] | None) -> list[str]:
    """The signals to look at in one run: those asked for, or the usual ones that it has."""
    names = series.names
    if not names:
        raise InputError(
            f"{series.label} has no numbers beside its steps; a number in quotes is text, write it without"
        )
    missing = [signal for signal in asked or () if signal not in names]
    signals = list(asked or [signal for signal in SIGNALS if signal in names])
    if missing or not signals:
        lacks = ", ".join(missing) if missing else f"neither {' nor '.join(SIGNALS)}"
        raise InputError(f"{series.label} has {'no ' * bool(missing)}{lacks}; --signal takes one of {', '.join(names)}")
    return signals


def find_events(series: Series, detector: Detector) -> list[Found]:
    """The events that ``detector`` finds in the run, in the order in which they ended, spikes with their precursors."""
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
    """What is known about the spike's precursors, of all metrics."""
    before, after = np.searchsorted(table.steps, [spike.start_step - LOOK_BACK, spike.start_step + 1])
    window = slice(int(before), int(after))
    columns = {name: table.columns[name][window].tolist() for name in sorted(table.columns)}
    return [asdict(p) for p in precursors(spike, table.steps[window].tolist(), columns)]


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

"""Spikes and other events in finished runs and in the logs of other tools, by any detector, with their precursors.

    python -m analysis.spikes RUN|LOG... [--detector NAME|all] [--signal NAME ...] [--columns ROLE=COLUMN ...]
        [--kinds KIND=COLUMN ...] --out DIR

RUN is a run directory, LOG a log of any kind that docs/running.md lists. Prints a table and writes DIR/events.json and
DIR/spikes.png. Detectors see every value as logged, in the order of the steps, not smoothed. Where a log goes back, they also
follow the branch that it left, as it was logged. Of a run that branched from another one (branch_from), they also see the rows
before, which it has kept. How a column is judged follows from the metric that it is (docs/metrics.md);
--kinds says it for any other column: as a loss (its level should not rise), a norm (by its logarithm) or a scale. As during
the run, norms and update sizes count from the end of the warm-up on; a log has no known warm-up. Saturation is looked for in
the metrics of logits, which have a panel where it is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from analysis.logs import RUN_OR_LOG, add_columns_option, load_series
from analysis.show import style
from analysis.show.stresses import words
from analysis.show.tables import terminal_table
from analysis.show.text import first_of, skipped_lines
from common.command import ArgumentParser, exit_status
from common.errors import InputError
from common.files import write_json
from record.metrics import SignalKind
from stability.detect.catalogue import DEFAULT, DETECTORS
from stability.detect.events import Rise, Saturated, Spike
from stability.detect.published import Olmo2

from .figure import Left, draw_spikes
from .find import Found, Rollback, Series, find_all, find_watched, remark, rollbacks

PRINTED_PRECURSORS = 4
_LISTED = 12
"""Most columns listed in an error."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(prog="python -m analysis.spikes", description="Spikes in finished runs and logs.")
    parser.add_argument("runs", nargs="+", metavar="RUN|LOG", help=RUN_OR_LOG)
    parser.add_argument(
        "--detector",
        default=DEFAULT,
        help=f"all, or one of {', '.join(DETECTORS)} (default: {DEFAULT}; level and stall for losses; saturated)",
    )
    parser.add_argument(
        "--signal", nargs="+", help="columns to look at (default: loss and gradient norm, where written)"
    )
    add_columns_option(parser)
    parser.add_argument(
        "--kinds", nargs="+", default=[], metavar="KIND=COLUMN",
        help=f"how to judge columns that are no known metrics (default: scale): KIND is one of {', '.join(get_args(SignalKind))}",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder for events.json and spikes.png")
    options = parser.parse_args(arguments)
    if options.detector not in (*DETECTORS, "all"):
        raise InputError(f"--detector {options.detector}: no such detector; give all or one of {', '.join(DETECTORS)}")
    series = load_series(options.runs, options.columns, options.kinds)
    signals = {one.label: _signals(one, options.signal) for one in series}
    chosen = {"all": list(DETECTORS), DEFAULT: [DEFAULT, "level", "stall", "saturated"]}
    detectors = chosen.get(options.detector, [options.detector])
    found, remarks = [], []
    for one in series:
        for signal in signals[one.label]:
            if options.detector == DEFAULT:
                events, detector = find_watched(one, signal)
                said = remark(one, signal, detector)
                remarks += [f"{one.label}, {signal}: {said}"] if said else []
                found += events
            else:
                found += _find(one, signal, detectors)
        if "saturated" in detectors and not options.signal:
            for column in one.saturable:
                events, _ = find_all(one, column, "saturated")
                found += events
                seen = {each.event.signal for each in events} & set(one.table.columns)
                signals[one.label] += sorted(seen)  # a panel of its own
    back = rollbacks(series)
    # Written first: a reader of what is printed may close the pipe.
    _draw(series, signals, found, detectors, options.out / "spikes.png")
    write_json(options.out / "events.json", [b.row() for b in back] + [f.row() for f in found])
    broken = _print_not_finite(series, signals)
    _print_table(series, back, found, "no other events" if broken else "no events")
    print(*remarks, sep="\n", end="\n" * bool(remarks))
    print(f"written to {options.out}: events.json, spikes.png")


def _find(series: Series, signal: str, detectors: Sequence[str]) -> list[Found]:
    """The events of each detector in a column; prints OLMo 2's score."""
    found = []
    for name in detectors:
        events, detector = find_all(series, signal, name)
        found += events
        if isinstance(detector, Olmo2):
            score = f"{detector.score:.3%} of {detector.seen} values"
            print(f"OLMo 2 spike score of {series.label}, {signal}: {score}")
    return found


def _draw(
    series: Sequence[Series],
    signals: dict[str, list[str]],
    found: Sequence[Found],
    detectors: Sequence[str],
    path: Path,
) -> None:
    curves = {(one.label, signal): one.values(signal) for one in series for signal in signals[one.label]}
    left = [
        Left(one.label, signal, *branch.values(signal), gone, [f.event for f in found if f.abandoned is gone])
        for one in series
        for signal in signals[one.label]
        for gone, branch in one.branches()
        if signal in branch.table.columns
    ]
    with style.look():
        figure = draw_spikes(curves, [(f.run, f.event) for f in found if f.abandoned is None], detectors, left)
        style.save_figure(figure, path)


def _signals(series: Series, given: Sequence[str] | None) -> list[str]:
    """The signals to examine in a run: the given ones, or those of the default ones that it has."""
    names = sorted(series.table.columns)
    if not names:
        raise InputError(f"{series.label} has no numbers besides its steps; name a log with a loss or a gradient norm")
    unknown = sorted(set(series.kinds) - set(names))
    if unknown:
        raise InputError(f"--kinds: {series.label} has no column {unknown[0]}; it has {first_of(names, _LISTED)}")
    missing = [signal for signal in given or () if signal not in names]
    signals = list(given or series.default_signals)
    if missing or not signals:
        lacks = f"no {', '.join(missing)}" if missing else "no column known to be a loss or a gradient norm"
        remedy = "--signal takes one of" if missing or series.log is None else "name one with --columns loss=COLUMN, of"
        raise InputError(f"{series.label} has {lacks}; {remedy} {first_of(names, _LISTED)}")
    return signals


def _print_not_finite(series: Sequence[Series], signals: dict[str, list[str]]) -> bool:
    """Say which values are not finite; whether there are any."""
    any_are = False
    for one in series:
        for signal in signals[one.label]:
            count = int((~np.isfinite(one.values(signal)[1])).sum())
            if count:
                any_are = True
                print(f"{one.label}, {signal}: {count} values are not finite (--detector non_finite lists them)")
        for line in skipped_lines(one.table.columns, one.table.steps):
            print(f"{one.label}: {line}")
    return any_are


def _print_table(series: Sequence[Series], back: Sequence[Rollback], found: Sequence[Found], nothing: str) -> None:
    header = ["run", "signal", "detector", "event", "steps", "peak", "height", "sigmas", "recovered"]
    rows = [[b.run, "step", "", "rollback", f"{b.from_step} back to {b.to_step}", "", "", "", ""] for b in back]
    rows += [_cells(f) for f in found]
    print(terminal_table(header, rows) if rows else nothing)
    for f in found:
        if f.precursors:
            named = [f"{p['signal']} ({p['lead_steps']} steps, {p['sigmas']:+.0f} sigma)" for p in f.precursors]
            before = first_of(named, PRINTED_PRECURSORS)
            print(f"before {f.run}, {f.event.signal}, step {f.event.start_step} ({f.event.detector}): {before}")
    for one in series:
        if stressed := one.stressed(0, int(one.table.steps[-1])):
            near = sum(bool(f.stressed) for f in found if f.run == one.label)
            print(f"{one.label}: stress acted at {words(stressed)}, in or shortly before {near} of these events")


def _cells(found: Found) -> list[str]:
    event = found.event
    steps = f"{event.start_step}" + (f" to {event.end_step}" if event.end_step > event.start_step else "")
    peak, sigmas, recovered = ("", "", "")
    if isinstance(event, Rise | Saturated):
        steps = f"from {event.start_step}, seen at {event.opened_step}"
    if isinstance(event, Rise):
        sigmas = f"{event.sigmas:.1f}"
    if isinstance(event, Spike):
        peak, sigmas = str(event.peak_step), f"{event.sigmas:.1f}" if event.sigmas else ""
        recovered = "yes" if event.recovered else "no"
    height = "" if event.height is None else f"{event.height:+.3g}"
    if isinstance(event, Saturated):  # a value, not a distance
        height = f"{event.height:.4g}"
    kind = event.kind if found.abandoned is None else f"{event.kind}, abandoned"
    return [found.run, event.signal, event.detector, kind, steps, peak, height, sigmas, recovered]


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

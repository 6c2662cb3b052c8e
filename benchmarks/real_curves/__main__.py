"""Benchmark of the spike detectors on loss curves of other people's runs, labelled by eye.

    python -m benchmarks.real_curves FOLDER [--out DIR]

FOLDER holds a parquet file for each curve (columns step and loss, some with grad_norm) and labels.json. Its entries, by the
curve's name: every, source, sharp, late_rise, healthy, and perhaps note (cases.py). The scoring rule is in score.py. With --out,
writes real_curves.md and events.csv.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from common.command import ArgumentParser, exit_status
from common.errors import note
from common.files import write_text
from stability.detect.catalogue import DEFAULT

from ..detectors import WATCHED
from . import packages
from .cases import Curve, load
from .contestants import Contestant, own
from .report import Result, events, tables


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(
        prog="python -m benchmarks.real_curves", description="Spike detectors on curves labelled by eye."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="parquet files and labels.json")
    parser.add_argument("--out", type=Path, help="folder for real_curves.md and events.csv (a row for each event)")
    options = parser.parse_args(arguments)
    curves = load(options.folder)
    others, absent = packages.installed()
    results = [run(one, curves) for one in own()]
    results = [watched(results), *results, *(run(one, curves) for one in others)]
    report = tables(curves, results, absent)
    print(report)
    if options.out:
        write_text(options.out / "real_curves.md", report)
        write_text(options.out / "events.csv", events(curves, results).to_csv(index=False, lineterminator="\n"))


def run(contestant: Contestant, curves: Sequence[Curve]) -> Result:
    """Let a contestant judge every column that it can; its CPU time goes to stderr, as all of it takes a while."""
    began = time.process_time()
    seen = [None if contestant.takes(curve.column) else contestant.find(curve) for curve in curves]
    seconds = time.process_time() - began
    note(f"{contestant.name}: {seconds:.0f} s")
    values = sum(len(curve.values) for curve, found in zip(curves, seen, strict=True) if found is not None)
    return Result(contestant, seen, seconds, values)


def watched(results: Sequence[Result]) -> Result:
    """What a run is watched by: the events of two rules together."""
    spikes, level = (next(r for r in results if r.contestant.name == name) for name in (DEFAULT, "level"))
    both = [None if a is None else sorted([*a, *(b or ())]) for a, b in zip(spikes.seen, level.seen, strict=True)]
    contestant = Contestant(WATCHED, "stability/detect, as a run is watched", spikes.contestant.takes, lambda curve: [])
    return Result(contestant, both, spikes.seconds + level.seconds, spikes.values)


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

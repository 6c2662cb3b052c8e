"""Benchmark of the spike detectors: known faults in realistic curves, found and missed.

    python -m benchmarks.detectors [--split tune|score] [--out DIR]

results/detectors/details.md describes curves, faults, measure and splits. With --out, writes detectors.md and detectors.csv.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from common.command import ArgumentParser, exit_status
from common.files import write_text
from stability.detect.catalogue import DEFAULT

from . import logged, logged_report, pulses, report
from .cases import SEEDS
from .measure import RULES, WATCHED, Outcome, outcomes

EACH = {WATCHED: RULES[WATCHED], DEFAULT: (DEFAULT,), "level": ("level",)} | RULES
"""Level alone as well, which is not made for pulses."""


def main() -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(
        prog="python -m benchmarks.detectors", description="Precision, recall and delay of every spike detector."
    )
    parser.add_argument("--split", choices=tuple(SEEDS), default="score")
    parser.add_argument("--out", type=Path, help="folder for detectors.md and detectors.csv (a row for each fault)")
    options = parser.parse_args()
    with_pulses, with_shapes = list(pulses.cases(options.split)), list(logged.cases(options.split))
    found = {"pulses": outcomes(with_pulses, RULES)}
    found["shapes"] = outcomes(with_shapes, EACH)
    text = f"{report.tables(found['pulses'])}\n{logged_report.tables(with_shapes, found['shapes'])}"
    print(text)
    if options.out:
        write_text(options.out / "detectors.md", text)
        write_text(options.out / "detectors.csv", faults(found).to_csv(index=False, lineterminator="\n"))


def faults(found: dict[str, dict[str, Outcome]]) -> pd.DataFrame:
    """A row for each fault and detector, of all parts."""
    rows = {(part, name): one.faults for part, by_rule in found.items() for name, one in by_rule.items()}
    return pd.concat(rows, names=["part", "detector"]).reset_index(level=[0, 1])


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

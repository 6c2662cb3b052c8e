"""Real telemetry for the benchmark of detectors: loss and gradient norm of healthy runs, in benchmarks/curves.csv.

    python -m benchmarks.curves RUN...        # writes the file, which was made once, from runs/scale/*

A column per run and signal, five significant digits.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from common.command import ArgumentParser, exit_status
from common.files import write_text
from record.finished import load_runs

CURVES = Path(__file__).with_name("curves.csv")
SIGNALS = ("loss/nll", "grad_norm/total")


def load_curves() -> pd.DataFrame:
    """Values by step; columns are pairs (run, signal)."""
    return pd.read_csv(CURVES, header=[0, 1], index_col=0)


def main() -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(description="Write benchmarks/curves.csv from runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN")
    runs = load_runs(parser.parse_args().runs)
    curves = pd.DataFrame({(name, signal): run.series(signal) for name, run in runs.items() for signal in SIGNALS})
    write_text(CURVES, curves.to_csv(float_format="%.5g", lineterminator="\n"))
    print(f"{CURVES}: {', '.join(runs)}")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

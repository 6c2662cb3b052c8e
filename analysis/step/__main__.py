"""How near to the edge of stability did a step come, and which signal knew?

    python -m analysis.step RUN --step N --out DIR [--sequences K]

Replays the run to step N, takes the step, and evaluates the loss of its batch at 1/4 to 512 times the step: the truth. Beside it
stand the signals by name (docs/stress-and-remedies.md): what the run measures cheaply, curvatures along the step and along the
preconditioned gradient, and the largest, the preconditioned sharpness against its threshold; and the safe multiple that each
predicts. Writes DIR/step.json and figure.png.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as train_lm.py does

from analysis.show import style
from analysis.show.tables import terminal_table
from analysis.show.text import number
from common.command import ArgumentParser, exit_status
from common.errors import InputError
from common.files import write_json
from common.imports import importing
from ranks.launch_variables import check_launch_variables
from record.finished import load_run


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(prog="python -m analysis.step", description="How near to the edge did a step come?")
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument("--step", type=int, required=True, help="the step to measure")
    parser.add_argument("--out", required=True, help="folder for the results")
    parser.add_argument("--sequences", type=int, default=2, help="sequences for the sharpness (default 2)")
    options = parser.parse_args(arguments)
    if options.sequences < 1:
        raise InputError(f"--sequences is {options.sequences}; give a whole number from 1")
    check_launch_variables()
    logged, out = load_run(options.run), Path(options.out)
    if "monitor" in logged.config:
        raise InputError(f"{logged.path}: rows of a loop that is not ours; exact replay needs a run of train_lm.py")
    telemetry = logged.config.get("telemetry", {})
    if telemetry.get("enabled") is False or "updates" not in telemetry.get("families", ["updates"]):
        raise InputError(f"{logged.path}: telemetry measures no updates there; this needs a run that does")
    if options.step not in logged.metrics.index:
        first, last = logged.metrics.index[[0, -1]]
        raise InputError(f"--step {options.step}: the run {logged.path} has logged steps {first} to {last}")
    with importing():  # torch
        from analysis.replay.rerun import disagreements, environment_of, open_replay, replay_to, tolerance_for

        from .figure import draw_step
        from .measure import MULTIPLES, take_step, take_vectors
    environment_of(logged)
    run = open_replay(logged, options.step)
    start, (tolerance, reason) = run.step, tolerance_for(run, logged)
    rows = list(replay_to(run, options.step - 2))
    previous = None
    if run.step < options.step - 1:
        row, previous = take_vectors(run)
        rows.append(row)
    found, _ = take_step(run, sequences=options.sequences, previous=previous)
    different = [name for row in [*rows, found.row] for name in disagreements(logged, row, tolerance)]
    write_json(
        out / "step.json",
        {
            "run": logged.name,
            "checkpoint": start,
            "reproduced": not different,
            "disagreements": different,
            "tolerance": tolerance,
            "tolerance_reason": reason,
            **asdict(found),
        },
    )
    with style.look():
        style.save_figure(draw_step(found, f"{logged.name}: along step {found.step}"), out / "figure.png")
    exactly = "to the bit" if tolerance == 0 else f"within {tolerance:g} ({reason})"
    print(f"replayed {exactly}" if not different else f"the replay differs from the log: {different[0]}")
    print(f"step {found.step}: {_told(found.safe_multiple, found.best_multiple, MULTIPLES[0])}")
    print(terminal_table(["signal", "value", "safe multiple it predicts"], _table(found.signals, found.predicted)))
    print(out / "figure.png")


def _told(safe: float, best: float, least: float) -> str:
    """Where the batch's loss is back at its start, and where it is lowest, among the multiples from ``least`` on."""
    if safe == 0:
        return f"already at {least:g} times the step, the least that was tried, its batch's loss is above its start"
    where = "no multiple tried" if math.isinf(safe) else f"{number(safe, 3)} times the step"
    lowest = f"{best:g} times{', or below' if best == least else ''}"
    return f"its batch's loss is back at its start at {where}; of the multiples tried, lowest at {lowest}"


def _table(signals: dict[str, float | None], predicted: dict[str, float | None]) -> list[list[str]]:
    def multiple(name: str) -> str:
        value = predicted.get(name)
        return "" if value is None else number(value, 3)

    return [[name, number(value, 3), multiple(name)] for name, value in signals.items()]


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

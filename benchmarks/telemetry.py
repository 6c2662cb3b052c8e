"""What watching costs: the step time of train_lm.py's loop with every metric on, against the same loop with metrics off.

    python -m benchmarks.telemetry [--config FILE] [--steps N] [key.sub=value ...]

Two runs of one recipe live in one process and take turns (benchmarks/paired.py), so that whatever else the machine does falls on
both. Times are summed over blocks of 20 steps, with the transfer of their rows, the detectors and one attention probe; evaluation
and checkpoints are left out. Prints the median time of a step, and the median of the blocks' ratios with its interval.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from common.command import ArgumentParser, exit_status

from .paired import BLOCK, DEFAULT_RECIPE, Series, check_steps, loop_step, machine, ratio, start_run, take_turns

MODES = {"on": [], "off": ["telemetry.enabled=false", "detection.signals=[]"]}


def main() -> None:
    """Measure and print."""
    parser = ArgumentParser(description="What watching costs, per step.")
    parser.add_argument("--config", type=Path, default=DEFAULT_RECIPE)
    parser.add_argument("--steps", type=int, default=200, help=f"steps of each run, in {BLOCK}s")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    arguments = parser.parse_args()
    check_steps(arguments.steps)
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            mode: start_run(arguments.config, [*arguments.overrides, *own], folder, f"metrics_{mode}")
            for mode, own in MODES.items()
        }
        device = runs["on"].accelerator.device
        series = take_turns({mode: loop_step(run) for mode, run in runs.items()}, arguments.steps, device)
    print(machine(device))
    print(
        f"{arguments.config.stem}: {runs['on'].tokens_per_step} tokens a step, {arguments.steps} steps of each in turns"
    )
    report(series, runs["on"].tokens_per_step)


def report(series: dict[str, Series], tokens: int) -> None:
    """Print the times of both modes and their ratio."""
    for mode in ("off", "on"):
        median = float(np.median(series[mode].wall))
        print(f"  metrics {mode:<3}  {1e3 * median:7.1f} ms/step  {tokens / median:9,.0f} tokens/s")
    for clock in ("wall", "cpu"):
        found = ratio(getattr(series["on"], clock), getattr(series["off"], clock))
        print(f"  on / off, {clock:<4}  {found}: {100 * (found.middle - 1):+.1f}% per step")
    print(f"  (median over {len(series['on'].blocks)} blocks of {BLOCK} steps, 95% interval)")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

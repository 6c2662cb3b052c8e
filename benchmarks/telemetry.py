"""What watching costs: the step time of train_lm.py's loop with every metric on, against the same loop with metrics off.

    python -m benchmarks.telemetry [--config FILE] [--steps N] [key.sub=value ...]

Two runs of one recipe live in one process and take turns, step by step, so that whatever else the machine does falls on both.
Times are summed over blocks of 20 steps, with the transfer of their rows, the detectors and one attention probe; evaluation
and checkpoints are left out. Prints the median time of a step, and the median of the blocks' ratios with its interval.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import bootstrap

from configs.errors import exit_status
from configs.load import load_config
from stability.launch import start_accelerator
from train_lm import flush, open_run_directory, training_step
from training.run import Run, build_run

BLOCK = 20
"""Steps between transfers, and between attention probes."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What watching costs, per step.")
    parser.add_argument("--config", type=Path, default=Path(__file__).parent.parent / "configs" / "pydoc_micro.yaml")
    parser.add_argument("--steps", type=int, default=200, help=f"steps of each run, in {BLOCK}s")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    arguments = parser.parse_args()
    seconds = measure(arguments.config, arguments.steps, arguments.overrides)
    config = load_config(arguments.config, arguments.overrides)
    tokens = config.train.batch_size * config.data.sequence_length
    ratios = seconds["on"] / seconds["off"]
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{config.name}: {tokens} tokens a step, {arguments.steps} steps of each in turns")
    for mode in ("off", "on"):
        median = float(np.median(seconds[mode]))
        print(f"  metrics {mode:<3}  {1e3 * median:7.1f} ms/step  {tokens / median:9,.0f} tokens/s")
    interval = bootstrap((ratios,), np.median, confidence_level=0.95, rng=0).confidence_interval
    middle = float(np.median(ratios))
    print(
        f"  on / off     {middle:.4f} [{interval.low:.4f}, {interval.high:.4f}]: {100 * (middle - 1):+.1f}% per step "
        f"(median over {len(ratios)} blocks of {BLOCK} steps, 95% bootstrap interval)"
    )


def measure(recipe: Path, steps: int, overrides: list[str]) -> dict[str, np.ndarray]:
    """Seconds per step of each block, for metrics on and off, in the order measured."""
    seconds: dict[str, list[float]] = {"on": [], "off": []}
    with tempfile.TemporaryDirectory() as folder:
        runs: dict[str, Run] = {}
        shared = [f"output_dir={folder}", f"telemetry.flush_every={BLOCK}", f"train.steps={steps}"]
        for mode, own in (("on", []), ("off", ["telemetry.enabled=false", "detection.signals=[]"])):
            config = load_config(recipe, [*overrides, *shared, *own, f"name=metrics_{mode}"])
            run = build_run(config, start_accelerator(config), Path(folder) / config.name, None)
            open_run_directory(run, resumed=False)
            run.bar.close()
            runs[mode] = run
        for first in range(1, steps + 1, BLOCK):
            block = {"on": 0.0, "off": 0.0}
            for number in range(first, first + BLOCK):
                # Who goes first alternates too.
                for mode in ("on", "off") if number % 2 else ("off", "on"):
                    block[mode] += step(runs[mode], number)
            for mode, total in block.items():
                seconds[mode].append(total / BLOCK)
    return {mode: np.array(values[1:]) for mode, values in seconds.items()}  # the first block warms up


def step(run: Run, number: int) -> float:
    """Seconds for one step and, at the end of a block, the transfer of the block's rows."""
    began = time.perf_counter()
    training_step(run, number)
    if number % BLOCK == 0:
        flush(run, evaluation_due=False)
    return time.perf_counter() - began


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

"""What watching costs: the step time of train_lm.py's loop with every metric on, against the same loop with metrics off.

    python -m benchmarks.telemetry [--config FILE] [--steps N] [key.sub=value ...]

Two runs of one recipe live in one process and take turns, a block of steps each, so that whatever else the machine does
falls on both. A block's time includes the transfer of its rows to metrics.jsonl; evaluation and checkpoints are left out.
Prints the median time of a step, tokens per second, and the median of the paired ratios with its quartiles.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from configs.errors import exit_status
from configs.load import load_config
from train_lm import Run, flush, set_up, training_step

BLOCK = 10


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What watching costs, per step.")
    parser.add_argument("--config", type=Path, default=Path(__file__).parent.parent / "configs" / "pydoc_micro.yaml")
    parser.add_argument("--steps", type=int, default=200, help="steps of each run")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    arguments = parser.parse_args()
    seconds = measure(arguments.config, arguments.steps, arguments.overrides)
    config = load_config(arguments.config, arguments.overrides)
    tokens = config.train.batch_size * config.data.sequence_length
    ratios = seconds["on"] / seconds["off"]
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{config.name}: {tokens} tokens a step, {arguments.steps} steps of each, alternating in blocks of {BLOCK}")
    for mode in ("off", "on"):
        median = float(np.median(seconds[mode]))
        print(f"  metrics {mode:<3}  {1e3 * median:7.1f} ms/step  {tokens / median:9,.0f} tokens/s")
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    print(f"  on / off     {middle:.3f} (quartiles {low:.3f} to {high:.3f}): {100 * (middle - 1):+.1f}% per step")


def measure(recipe: Path, steps: int, overrides: list[str]) -> dict[str, np.ndarray]:
    """Seconds per step of each block, for metrics on and off, in the order measured."""
    seconds: dict[str, list[float]] = {"on": [], "off": []}
    with tempfile.TemporaryDirectory() as folder:
        common = [*overrides, f"output_dir={folder}", f"train.steps={steps}", f"telemetry.flush_every={BLOCK}"]
        runs: dict[str, Run] = {}
        for mode, enabled in (("on", "true"), ("off", "false")):
            run = set_up(load_config(recipe, [*common, f"name=metrics_{mode}", f"telemetry.enabled={enabled}"]))
            assert run is not None
            run.bar.close()
            runs[mode] = run
        for start in range(0, steps, BLOCK):
            # Who goes first alternates too.
            for mode in ("on", "off") if start // BLOCK % 2 else ("off", "on"):
                seconds[mode].append(block(runs[mode], start) / BLOCK)
    return {mode: np.array(values[1:]) for mode, values in seconds.items()}  # the first block warms up


def block(run: Run, start: int) -> float:
    """Seconds for one block of steps and the transfer of its rows."""
    began = time.perf_counter()
    for step in range(start + 1, start + BLOCK + 1):
        training_step(run, step)
    flush(run, evaluation_due=False)
    return time.perf_counter() - began


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

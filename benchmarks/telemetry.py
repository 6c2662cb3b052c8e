"""The cost of measuring, per step: train_lm.py's loop with all its metrics, and with telemetry and detection switched off.

    python -m benchmarks.telemetry [--families] [--config FILE] [--steps N] [key.sub=value ...]

``--families``: also each family of metrics by itself, beside the loop without any, and the loop without the attention probe and
without the measure of the edge. The runs of one recipe take turns (benchmarks/paired.py). A block of 20 steps includes the
transfer of their rows, the detectors and one attention probe; evaluation and checkpoints are left out.
"""

from __future__ import annotations

import tempfile
from typing import get_args

import numpy as np

from common.command import ArgumentParser, exit_status
from record.metrics import Family

from .paired import BLOCK, CLOCKS, compare, loop_step, parse_arguments, start_run, take_turns
from .turns import machine

MODES = {"on": [], "off": ["telemetry.enabled=false", "detection.signals=[]"]}
FAMILIES = get_args(Family)
QUIET = ("telemetry.attention_every=null", "telemetry.edge_every=null")
ALONE = {f"only {family}": [f"telemetry.families=[{family}]", *QUIET, "detection.signals=[]"] for family in FAMILIES}
WITHOUT = {"without attention": ["telemetry.attention_every=null"], "without edge": ["telemetry.edge_every=null"]}


def main() -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(description="The cost of telemetry, per step.")
    parser.add_argument("--families", action="store_true", help="also each family of metrics by itself")
    arguments = parse_arguments(parser)
    recipe, steps, modes = arguments.config, arguments.steps, MODES | (ALONE | WITHOUT if arguments.families else {})
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            m: start_run(recipe, [*arguments.overrides, *own], folder, f"metrics_{m}".replace(" ", "_"))
            for m, own in modes.items()
        }
        device, tokens = runs["on"].accelerator.device, runs["on"].tokens_per_step
        series = take_turns({mode: loop_step(run) for mode, run in runs.items()}, steps, device)
    print(machine(device))
    print(f"{recipe.stem}: {tokens} tokens a step, {steps} steps of each in turns")
    for mode in ("off", "on"):
        median = float(np.median(series[mode].per_step("wall")))
        print(f"  metrics {mode:<3}  {1e3 * median:7.1f} ms/step  {tokens / median:9,.0f} tokens/s")
    pairs = [("on", "off"), *((mode, "off") for mode in ALONE), *(("on", mode) for mode in WITHOUT)]
    for clock in CLOCKS:
        for above, below in pairs:
            if above in series and below in series:
                found = compare(series[above], series[below], clock)
                print(f"  {f'{above} / {below}, {clock}':<32}{found}: {100 * (found.middle - 1):+.1f}% per step")
    print(f"  (median over {len(series['on'].blocks)} blocks of {BLOCK} steps, 95% interval)")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

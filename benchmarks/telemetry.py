"""The cost of telemetry: the step time of train_lm.py's loop with every metric on, against the same loop with metrics off.

    python -m benchmarks.telemetry [--families] [--config FILE] [--steps N] [key.sub=value ...]

--families: also what each family of metrics costs, by a loop without it. The runs of one recipe take turns
(benchmarks/paired.py). A block of 20 steps includes the transfer of their rows, the detectors and one attention probe;
evaluation and checkpoints are left out.
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
WITHOUT = {
    f"without {family}": [f"telemetry.families=[{', '.join(other for other in FAMILIES if other != family)}]"]
    for family in FAMILIES
} | {"without attention": ["telemetry.attention_every=null"], "without edge": ["telemetry.edge_every=null"]}


def main() -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(description="The cost of telemetry, per step.")
    parser.add_argument("--families", action="store_true", help="also each family of metrics by itself")
    arguments = parse_arguments(parser)
    recipe, steps, modes = arguments.config, arguments.steps, MODES | (WITHOUT if arguments.families else {})
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
    for clock in CLOCKS:
        found = compare(series["on"], series["off"], clock)
        print(f"  on / off, {clock:<4}  {found}: {100 * (found.middle - 1):+.1f}% per step")
        for mode in (m for m in modes if m not in MODES):
            found = compare(series["on"], series[mode], clock)
            print(f"    on / {mode}, {clock:<4}  {found}: {100 * (found.middle - 1):+.1f}% per step")
    print(f"  (median over {len(series['on'].blocks)} blocks of {BLOCK} steps, 95% interval)")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

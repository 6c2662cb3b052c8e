"""What it costs to measure how near the edge a step came, and to make steps safe by it: steps with and without, in turns.

    python -m benchmarks.edge_cost --out DIR [--config FILE] [--steps N] [key.sub=value ...]

Four runs of one recipe take turns (benchmarks/paired.py), everything else that a run watches switched on in each:

    none                no edge is measured (telemetry.edge_every=null)
    edge                measured at every step (telemetry.edge_every=1)
    safe_step, kappa    no edge is measured, interventions=[{kind: safe_step}]
    safe_step, logits   the same by: logits

A run measures every 100th step only, so that a hundredth of the second is what edge_every=100 costs on average: a block of 20
steps cannot hold 100, and what one measured step costs does not depend on the others. Writes DIR/edge_cost.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from analysis.show.tables import markdown_table
from common.command import ArgumentParser, exit_status
from common.files import write_text

from .paired import BLOCK, CLOCKS, Series, compare, loop_step, parse_arguments, start_run, take_turns
from .turns import machine

NEVER = "telemetry.edge_every=null"
MODES: dict[str, list[str]] = {
    "none": [NEVER],
    "edge": ["telemetry.edge_every=1"],
    "safe_step, kappa": [NEVER, "interventions=[{kind: safe_step}]"],
    "safe_step, logits": [NEVER, "interventions=[{kind: safe_step, by: logits}]"],
}
EVERY = 100
"""Steps between measurements by default (telemetry.edge_every)."""


def main() -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(prog="python -m benchmarks.edge_cost", description="The cost of measuring the edge.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    arguments = parse_arguments(parser)
    recipe, steps = arguments.config, arguments.steps
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            name: start_run(recipe, [*arguments.overrides, *own], folder, f"mode_{number}")
            for number, (name, own) in enumerate(MODES.items())
        }
        device, tokens = runs["none"].accelerator.device, runs["none"].tokens_per_step
        series = take_turns({name: loop_step(run) for name, run in runs.items()}, steps, device)
    heading = f"{recipe.stem}, {tokens} tokens a step, {steps} steps of each in turns, in blocks of {BLOCK}; "
    text = f"{heading}{machine(device)}.\n\n{tables(series)}"
    write_text(arguments.out / "edge_cost.md", text)
    print(text)


def tables(series: Mapping[str, Series]) -> str:
    """Milliseconds per step, and what each way of measuring adds to a step, in per cent, with 95% intervals of the median over
    blocks; then the same of a measurement at every EVERY-th step."""
    added = {
        name: {clock: compare(series[name], series["none"], clock) for clock in CLOCKS}
        for name in series
        if name != "none"
    }
    rows = []
    for name, one in series.items():
        each = [f"{1e3 * float(np.median(one.per_step(clock))):.1f}" for clock in CLOCKS]
        more = [per_cent(r.middle, r.low, r.high) for r in added[name].values()] if name in added else ["", ""]
        rows.append([name, *each, *more])
    header = ["measured at every step", "ms, wall", "ms, CPU", "added, wall", "added, CPU"]
    edge = added["edge"]
    share = [
        per_cent(*[1 + (x - 1) / EVERY for x in (ratio.middle, ratio.low, ratio.high)], digits=2)
        for ratio in edge.values()
    ]
    often = [[f"{EVERY}", *share]]
    return f"{markdown_table(header, rows)}\n{markdown_table(['telemetry.edge_every', 'added, wall', 'added, CPU'], often)}"


def per_cent(middle: float, low: float, high: float, *, digits: int = 1) -> str:
    """Ratios as what they add to 1."""
    parts = [f"{100 * (x - 1):+.{digits}f}%".replace("-", "\N{MINUS SIGN}") for x in (middle, low, high)]
    return f"{parts[0]} [{parts[1]}, {parts[2]}]"


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

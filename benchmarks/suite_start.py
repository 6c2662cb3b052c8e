"""How long a suite's run takes to begin: as a fork of a warm process, and as a process of its own that imports everything.

    python -m benchmarks.suite_start --out DIR [--config FILE] [--runs N] [key.sub=value ...]

The two take turns, one run at a time with one thread. A run has begun when its status.json is there, which is written before the
first step. Then it is stopped. Writes DIR/suite_start.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from analysis.show.tables import markdown_table
from common.command import ArgumentParser, exit_status
from common.errors import InputError
from common.files import write_text
from suite.child import Child
from suite.local import CommandChild
from suite.warm import ROOT, WarmChild, environment, fork_server

RECIPE = ROOT / "configs" / "stress_micro.yaml"
LOOK = 0.005
"""Seconds between looks for status.json."""
PATIENCE = 300.0
"""Seconds after which a run has not begun."""


def main() -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(
        prog="python -m benchmarks.suite_start", description="How long a suite's run takes to begin."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the table")
    parser.add_argument(
        "--config", type=Path, default=RECIPE, help="recipe of the runs (default: configs/stress_micro.yaml)"
    )
    parser.add_argument("--runs", type=int, default=12, help="runs of each (default: 12)")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="changes to the recipe")
    options = parser.parse_args()
    if options.runs < 1:
        raise InputError(f"--runs: must be at least 1, but is {options.runs}")
    seconds = measured(options.config, options.overrides, options.runs)
    text = f"{options.config.stem}, {options.runs} runs of each in turns, one thread.\n\n{table(seconds)}"
    write_text(options.out / "suite_start.md", text)
    print(text)


def measured(recipe: Path, overrides: Sequence[str], runs: int) -> dict[str, list[float]]:
    """Seconds until each run began, by the way it was started."""
    context = fork_server(threads=1)
    variables = environment(threads=1)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)

        def warm(arguments: Sequence[str], log: Path) -> Child:
            return WarmChild(context, arguments, log, place=0)

        def cold(arguments: Sequence[str], log: Path) -> Child:
            return CommandChild([str(ROOT / "train_lm.py"), *arguments], log, variables)

        ways = {"a process of its own": cold, "a fork of a warm one": warm}
        _time(warm, recipe, overrides, out, "first")  # the fork server starts, and the tokens are made
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(runs):
            for way, (name, start) in enumerate(ways.items()):
                seconds[name].append(_time(start, recipe, overrides, out, f"run_{number}_{way}"))
    return seconds


def _time(
    start: Callable[[Sequence[str], Path], Child], recipe: Path, overrides: Sequence[str], out: Path, name: str
) -> float:
    """Seconds until a run began. Raises InputError if it did not, ValueError if there was one of its name."""
    if (out / name).exists():
        raise ValueError(f"{name} has begun before")
    arguments = ["--config", str(recipe), *overrides, f"output_dir={json.dumps(str(out))}", f"name={name}"]
    begin = time.perf_counter()
    child = start(arguments, out / "logs" / f"{name}.log")
    while not (out / name / "status.json").is_file():
        if child.ended() or time.perf_counter() - begin > PATIENCE:
            raise InputError(f"a run did not begin: {' '.join(child.last_lines(1))}")
        time.sleep(LOOK)
    seconds = time.perf_counter() - begin
    child.stop()
    while not child.ended():
        time.sleep(LOOK)
    return seconds


def table(seconds: dict[str, list[float]]) -> str:
    """Median and range by the way of starting."""
    rows = [[name, f"{np.median(own):.2f}", f"{min(own):.2f}", f"{max(own):.2f}"] for name, own in seconds.items()]
    return markdown_table(["started as", "median s", "least", "most"], rows)


if __name__ == "__main__":
    sys.exit(exit_status(main))

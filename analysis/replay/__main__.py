"""Replay one step of a run from the checkpoint before it, and explain what happened there.

    python -m analysis.replay RUN --step N --out DIR [--counterfactual skip|clip=X|lr=X|objective=KIND ...] [--window W]

Replays the steps from the last earlier checkpoint (or from the start) to N and compares every metric with the run's log: to the
bit on the device and with the number of threads and processes of the run, otherwise within a stated tolerance. Then explains
step N: DIR/page.html, figure.png, explanation.json, tokens.parquet, and a summary on the terminal. With --counterfactual, W
more steps are taken with one thing changed: DIR/counterfactuals.png and .json.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as train_lm.py does

import numpy as np
import pandas as pd

from analysis.show import style
from common.command import ArgumentParser, exit_status
from common.errors import InputError
from common.files import write_atomically, write_json, write_text
from common.imports import importing
from ranks.launch_variables import check_launch_variables
from record.finished import load_run

from .explanation import Explanation, TokenTable
from .figure import draw_counterfactuals, draw_explanation
from .page import page
from .words import difference, summary_lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(prog="python -m analysis.replay", description="Replay a step and explain it.")
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument("--step", type=int, required=True, help="the step to explain")
    parser.add_argument("--out", required=True, help="folder for the results")
    parser.add_argument("--sequences", type=int, default=6, help="sequences shown token by token (default 6)")
    parser.add_argument(
        "--counterfactual",
        action="append",
        default=[],
        metavar="CHANGE",
        help="skip, skip=K, clip=X, lr=X or objective=KIND, from the step on; may be repeated",
    )
    parser.add_argument("--window", type=int, default=50, help="steps of a counterfactual (default 50)")
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the summary quotes the corpus, which may hold any text
    for name in ("sequences", "window"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name} is {getattr(options, name)}; give a whole number from 1")
    check_launch_variables()
    logged, out = load_run(options.run), Path(options.out)
    if "monitor" in logged.config:
        raise InputError(f"{logged.path}: rows of a loop that is not ours; exact replay needs a run of train_lm.py")
    if options.step not in logged.metrics.index:
        first, last = logged.metrics.index[[0, -1]]
        raise InputError(f"--step {options.step}: the run {logged.path} has logged steps {first} to {last}")
    with importing():  # torch
        from .explain import explain
        from .rerun import changed_config, counterfactual, environment_of, open_replay
    environment_of(logged)
    changes = {change: changed_config(logged, options.step, change) for change in options.counterfactual}
    run = open_replay(logged, options.step)
    explanation, tokens, before = explain(run, logged, options.step, options.sequences, keep_state=bool(changes))
    _write(explanation, tokens, out)
    if changes:
        found = [counterfactual(run, logged, before, *change, options.window) for change in changes.items()]
        write_json(out / "counterfactuals.json", [asdict(c) for c in found])
        with style.look():
            style.save_figure(draw_counterfactuals(found), out / "counterfactuals.png")
        for c in found:
            print(difference(c))
    print(f"{out / 'page.html'}")


def _write(explanation: Explanation, tokens: TokenTable, out: Path) -> None:
    """Write the explanation into ``out`` and print its summary."""
    with style.look():
        style.save_figure(draw_explanation(explanation, tokens), out / "figure.png")
    write_json(out / "explanation.json", {"reproduced": explanation.reproduced, **asdict(explanation)})
    sequence_BT, position_BT = np.indices(tokens.token_id_BT.shape)
    columns: dict[str, Any] = {"sequence": sequence_BT, "position": position_BT, "token_id": tokens.token_id_BT}
    columns |= {"nll": tokens.nll_BT, "objective": tokens.objective_BT}
    if tokens.weight_BT is not None:
        columns["weight"] = tokens.weight_BT
    table = pd.DataFrame({name: values.ravel() for name, values in columns.items()})
    write_atomically(out / "tokens.parquet", lambda file: table.to_parquet(file, index=False))
    commands = [shlex.join(["python", "-m", "analysis.replay", *sys.argv[1:]])]
    write_text(out / "page.html", page(explanation, (out / "figure.png").read_bytes(), commands))
    print("\n".join(summary_lines(explanation)))


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

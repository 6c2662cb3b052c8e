"""The cause of a spike, by experiment.

    python -m analysis.autopsy RUN [--step N | --event K] --out DIR

Goes back to the checkpoint before a spike, takes the steps around it again, and then once more for each of some changes:
without its batches, at half the rate, with the moments forgotten, with other beta2, with QK-clip, with z-loss, ... Tells which
single change removes the spike, what moved first, which sequences carry it, and concludes: data, optimizer state, rate too high,
attention logits, output logits, numerics, hardware, or not decided. Without --step or --event it takes the highest spike of
the run. Writes DIR/page.html, figure.png and autopsy.json.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as train_lm.py does

from tqdm import tqdm

from analysis.show import style
from common.command import ArgumentParser, exit_status
from common.errors import InputError
from common.files import write_json, write_text
from common.imports import importing
from ranks.launch_variables import check_launch_variables
from record.checkpoints import start_step
from record.finished import Run as LoggedRun
from record.finished import load_run


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(prog="python -m analysis.autopsy", description="The cause of a spike, by experiment.")
    parser.add_argument("run", metavar="RUN", help="run directory")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="a step of the spike (default: the highest of the loss, or of any)")
    which.add_argument("--event", type=int, metavar="K", help="the K-th spike of events.jsonl, from 1")
    parser.add_argument("--out", required=True, help="folder for the results")
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the summary quotes the corpus, which may hold any text
    check_launch_variables()
    logged, out = load_run(options.run, with_parent_rows=True), Path(options.out)
    if "monitor" in logged.config:
        raise InputError(f"{logged.path}: rows of a loop that is not ours; exact replay needs a run of train_lm.py")
    spike = choose_spike(logged, options.step, options.event)
    with importing():  # torch
        from analysis.replay.explain import explain
        from analysis.replay.rerun import environment_of, open_replay, restore
        from analysis.replay.words import summary_lines

        from .conclude import conclude
        from .experiments import experiments
        from .figure import draw_autopsy
        from .page import page, summary
        from .window import LEAD, investigate
    environment_of(logged)
    run = open_replay(logged, max(int(spike["start_step"]) - LEAD, first_step(logged)))
    with tqdm(unit="step", dynamic_ncols=True, leave=False, disable=None) as bar:

        def progress(name: str, steps: int) -> None:
            bar.set_description(name)
            bar.update(steps)

        found, before = investigate(run, logged, spike, lambda window: experiments(run.config, window), progress)
    conclusion = conclude(found.evidence)
    restore(run, before)
    explained, _, _ = explain(run, logged, int(spike["start_step"]), 3, keep_state=False)
    carried = replace(explained, checkpoint=before["checkpoint"])
    write_json(
        out / "autopsy.json",
        {"run": logged.name, "spike": dict(spike), **asdict(conclusion), **asdict(found), "step": asdict(carried)},
    )
    with style.look():
        style.save_figure(draw_autopsy(found, logged.name, conclusion.cause), out / "figure.png")
    lines = summary(found, conclusion, spike)
    write_text(out / "page.html", page(logged.name, lines, summary_lines(carried), (out / "figure.png").read_bytes()))
    print("\n".join(lines))
    print(out / "page.html")


def first_step(logged: LoggedRun) -> int:
    """The run's own first step: the rows before it, if there are any, are those of the run from which it branched."""
    return max(start_step(logged.path) + 1, int(logged.metrics.index[0]))


def choose_spike(logged: LoggedRun, step: int | None, event: int | None) -> Mapping[str, Any]:
    """The spike to look at. Raises InputError if there is none."""
    spikes = [e for e in logged.events if e["event"] == "spike"]
    if event is not None:
        if not 1 <= event <= len(spikes):
            raise InputError(f"--event {event}: the run {logged.path} has {_spikes_of(spikes)}")
        return spikes[event - 1]
    if step is None:
        broken = [e for e in logged.events if e["event"] == "non_finite" and "start_step" in e]
        if not spikes and broken:
            return {**broken[0], "peak_step": broken[0]["start_step"], "precursors": []}
        if not spikes and any(e["event"] == "rewind" for e in logged.events):
            raise InputError(
                f"{logged.path} has no spike but those that it rewound; branch_from a checkpoint before one, without the "
                "rewind, and look at the branch"
            )
        if not spikes:
            raise InputError(f"{logged.path} has no spike in events.jsonl; name a step of yours with --step")
        return max(spikes, key=lambda e: (e["signal"] == "loss/nll", float(e["sigmas"])))
    first, last = first_step(logged), int(logged.metrics.index[-1])
    if step not in logged.metrics.index or step < first:
        raise InputError(f"--step {step}: the run {logged.path} has logged steps {first} to {last}")
    at = [e for e in spikes if e["start_step"] <= step <= e["end_step"]]
    named = {"signal": "loss/nll", "start_step": step, "peak_step": step, "end_step": step, "precursors": []}
    return max(at, key=lambda e: float(e["sigmas"]), default=named)


def _spikes_of(spikes: Sequence[Mapping[str, Any]]) -> str:
    told = ", ".join(f"{k}: {e['signal']} from step {e['start_step']}" for k, e in enumerate(spikes, 1))
    return f"{len(spikes)} spike{'s' if len(spikes) != 1 else ''}" + (f" ({told})" if spikes else "")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

"""Take one step of a run again, from the checkpoint before it, and say what happened there.

    python -m analysis.replay RUN --step N --out DIR [--counterfactual skip|clip=X|lr=X|objective=KIND ...] [--window W]

Replays the steps from the nearest earlier checkpoint (or from the start) to N and compares every metric with the run's log: to
the bit on the device and with the number of threads and processes of the run, else within a tolerance that is stated. Then
explains step N: DIR/page.html, figure.png, explanation.json, tokens.parquet, and a summary on the terminal. With
--counterfactual, W more steps are taken with one thing changed: DIR/counterfactuals.png and .json.
"""

from __future__ import annotations

import io
import json
import math
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as train_lm.py does

import numpy as np
import pandas as pd

from configs.errors import ArgumentParser, InputError, exit_status
from configs.imports import importing
from configs.load import load_recorded
from stability.launch_variables import check_launch_variables

from . import style
from .counterfactual_figure import draw_counterfactual
from .explanation import Explanation, Group, MetricCheck, TokenTable
from .files import write_atomically, write_json, write_text
from .replay_figure import draw_explanation
from .replay_page import page
from .replay_words import difference, summary_lines
from .runs import Run as LoggedRun
from .runs import load_run, run_file

if TYPE_CHECKING:
    from data.store import TokenStore
    from training.run import Run

USUAL = 64
"""So many rows before the step say what is usual."""
AROUND = 60
"""Rows shown on either side of the step."""
LOOSE = 1e-3
"""Relative tolerance where the replay does not run as the run did: another device, precision or number of processes."""
MOST_PROCESSES = 1 << 20
"""No run has more processes or threads."""
_FACTS: dict[tuple[str, ...], type] = {
    ("device", "type"): str,
    ("device", "name"): str,
    ("threads",): int,
    ("world_size",): int,
    ("packages", "torch"): str,
    ("data", "path"): str,
    ("data", "store"): str,
    ("data", "manifest_sha256"): str,
}
"""What a replay reads of environment.json."""
NOT_REPLAYED = ("throughput/", "memory/", "validation/")


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
        sys.stdout.reconfigure(errors="replace")  # the summary quotes any text there is
    for name in ("sequences", "window"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name} is {getattr(options, name)}; give a whole number from 1")
    check_launch_variables()
    logged, out = load_run(options.run), Path(options.out)
    _check(logged, options.step)
    with importing():  # torch
        from .counterfactual import changed_config, take_both
    changes = {change: changed_config(logged, options.step, change) for change in options.counterfactual}
    run = open_replay(logged, options.step)
    explanation, tokens, before = explain(run, logged, options.step, options.sequences, keep_state=bool(changes))
    _write(explanation, tokens, out)
    if changes:
        found = [take_both(run, logged, before, change, config, options.window) for change, config in changes.items()]
        write_json(out / "counterfactuals.json", [asdict(c) for c in found])
        with style.look():
            style.save_figure(draw_counterfactual(found), out / "counterfactuals.png")
        for c in found:
            print(difference(c))
    print(f"{out / 'page.html'}")


def _check(logged: LoggedRun, step: int) -> None:
    first, last = int(logged.metrics.index[0]), int(logged.metrics.index[-1])
    if step not in logged.metrics.index:
        raise InputError(f"--step {step}: the run {logged.path} has logged steps {first} to {last}")
    environment_of(logged)


def open_replay(logged: LoggedRun, step: int) -> Run:
    """The run at its nearest checkpoint before ``step``, on one process; nothing is written to its directory."""
    with importing():
        import torch

        from stability.checkpoints import checkpoint_before
        from stability.integrity import damage
        from stability.launch import start_accelerator
        from stability.rewind import last_rewind
        from training.run import build_run
    config = load_recorded(logged.path).model_copy(update={"trackers": []})
    facts = environment_of(logged)
    if facts["device"]["type"] == "cpu":
        torch.set_num_threads(facts["threads"])
    if config.train.precision == "fp16":
        raise InputError(f"{logged.path}: a run in fp16 cannot be replayed, its gradient scale is not kept")
    checkpoint, store = checkpoint_before(logged.path, step), _recorded_store(logged, config.data.cache_dir)
    if checkpoint is not None and (problem := damage(checkpoint)):
        raise InputError(f"{checkpoint} cannot be used: {problem}; rename it, and the one before it is")
    run = build_run(
        config,
        start_accelerator(config),
        logged.path,
        checkpoint,
        writes=False,
        store=store,
    )
    run.rewind = last_rewind(logged.path)  # what it skipped in the end holds for every step before, too
    return run


def _recorded_store(logged: LoggedRun, cache_dir: str) -> TokenStore:
    """The tokens of the run, where it found them or where its configuration leads from here."""
    from data.store import read_store

    recorded = environment_of(logged)["data"]
    for path in (Path(recorded["path"]), Path(cache_dir) / recorded["store"]):
        if path.is_dir() and (store := read_store(path)).manifest_hash() == recorded["manifest_sha256"]:
            return store
    raise InputError(f"{logged.path}: the tokens it was made of are not in {recorded['path']} any more; restore them")


def environment_of(logged: LoggedRun) -> dict[str, Any]:
    """What the run ran on. Raises InputError if environment.json is missing, or a fact in it that a replay needs."""
    path = run_file(logged.path, "environment.json")
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise InputError(f"{path} is missing or not JSON; it names the tokens that the run was made of") from None
    for keys, kind in _FACTS.items():
        value: Any = facts
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if type(value) is not kind or (isinstance(value, int) and not 1 <= value <= MOST_PROCESSES):
            raise InputError(f"{path}: {'.'.join(keys)} cannot be read; restore the file")
    if Path(facts["data"]["store"]).name != facts["data"]["store"]:
        raise InputError(f"{path}: data.store is not the name of a folder; restore the file")
    return facts


def tolerance_for(run: Run, logged: LoggedRun) -> tuple[float, str]:
    """Relative tolerance of the comparison with the log, and why it is not 0."""
    from stability.environment import environment

    then = environment_of(logged)
    now = environment(run.accelerator.num_processes, run.accelerator.device, run.config.train.precision)
    differing = [
        f"{name} was {then[key]} and is {now[key]}"
        for name, key in (("the number of processes", "world_size"), ("the number of threads", "threads"))
        if then[key] != now[key]
    ]
    if then["world_size"] != now["world_size"]:
        differing.append("dropout, if any, draws by process")
    if then["device"] != now["device"]:
        differing.append(f"the device was {then['device']['name']} and is {now['device']['name']}")
    if then["packages"]["torch"] != now["packages"]["torch"]:
        differing.append(f"torch was {then['packages']['torch']} and is {now['packages']['torch']}")
    if now["device"]["type"] != "cpu":
        differing.append("kernels on a GPU may add in any order")
    return (LOOSE if differing else 0.0), "; ".join(differing)


def replay(run: Run, last: int) -> Iterator[dict[str, Any]]:
    """Take the steps up to ``last``; yields each step's metrics."""
    from train_lm import training_step

    while run.step < last:
        training_step(run, run.step + 1)
        yield from run.recorder.transfer().rows


def compare(logged: LoggedRun, row: dict[str, Any], tolerance: float) -> list[str]:
    """The metrics that a replayed row and the log tell otherwise, or that only one of them has, as "step N: name"."""
    step = row["step"]
    if step not in logged.metrics.index:
        return []
    found = []
    for name in dict.fromkeys([*row, *logged.metrics.columns]):
        then = logged.value(name, step)
        if name.startswith(NOT_REPLAYED) or (then is None and name not in row):
            continue
        if then is None or name not in row:
            found.append(f"step {step}: {name} ({'not logged' if then is None else 'not measured by the replay'})")
        elif not agrees(then, row[name], tolerance):
            found.append(f"step {step}: {name}")
    return found


def agrees(logged: float, replayed: float, tolerance: float) -> bool:
    """Equal, both NaN, or within the relative tolerance."""
    if math.isnan(logged) or math.isnan(replayed):
        return math.isnan(logged) and math.isnan(replayed)
    return logged == replayed or math.isclose(logged, replayed, rel_tol=tolerance, abs_tol=tolerance * 1e-3)


def explain(
    run: Run, logged: LoggedRun, step: int, detailed: int, keep_state: bool
) -> tuple[Explanation, TokenTable, dict[str, Any]]:
    """Replay to ``step`` and take it apart. Also returns, if asked for, the state before it (see counterfactual.py)."""
    import torch

    from stability.stress import describe_faults
    from train_lm import step_batch

    from . import anatomy
    from .counterfactual import snapshot

    begun, (tolerance, reason) = run.step, tolerance_for(run, logged)
    rows = list(replay(run, step - 1))
    before = snapshot(run, begun) if keep_state else {}
    model, tokenizer = run.bare_model(), run.store.load_tokenizer()
    x_BT, y_BT = (ids.to(run.accelerator.device) for ids in step_batch(run, step))
    found = anatomy.sequence_gradients(model, run.telemetry.group_norms, x_BT, y_BT)
    indices = run.batches.sequences(run.batch_number(step)).tolist()
    sequences = anatomy.describe_sequences(model, tokenizer, found, x_BT, indices, detailed)
    nll_before, norms_before = anatomy.layer_norms(model, x_BT, y_BT)
    embedding_VD = model.get_input_embeddings().weight
    old_VD = embedding_VD.detach().clone()

    rows += replay(run, step)
    row = rows[-1]
    nll_after, norms_after = anatomy.layer_norms(model, x_BT, y_BT)
    with torch.no_grad():
        embeddings = anatomy.moved_embeddings(tokenizer, old_VD, embedding_VD, x_BT, y_BT, count=12)
    usual = logged.metrics.loc[: step - 1].tail(USUAL)
    metrics = {name: _check_metric(name, value, logged, usual, step, tolerance) for name, value in row.items()}
    clip_norm, total = run.config.optimizer.clip_norm, row["grad_norm/total"]
    explanation = Explanation(
        run=logged.name,
        run_directory=str(logged.path),
        step=step,
        checkpoint=begun,
        batch=run.batch_number(step),
        device=str(run.accelerator.device),
        tolerance=tolerance,
        tolerance_reason=reason,
        disagreements=[name for replayed in rows for name in compare(logged, replayed, tolerance)],
        steps_compared=sum(replayed["step"] in logged.metrics.index for replayed in rows),
        stress=describe_faults(run.config.stress, step, run.batch_number(step)),
        spike=_spike_of(logged, step),
        usual_window=(int(usual.index[0]), int(usual.index[-1])) if len(usual) else (0, 0),
        metrics=metrics,
        clipped_by=None if clip_norm is None else float(np.minimum(1.0, clip_norm / (total + 1e-6))),
        nll_before=nll_before,
        nll_after=nll_after,
        sequences=sequences,
        groups=[_group(name, metrics) for name in run.telemetry.group_norms.names if f"grad_norm/{name}" in metrics],
        embeddings=embeddings,
        layers=anatomy.layers(norms_before, norms_after),
        history=_history(logged, step),
    )
    return explanation, found.tokens, before


def _check_metric(
    name: str, value: float, logged: LoggedRun, usual: pd.DataFrame, step: int, tolerance: float
) -> MetricCheck:
    then = logged.value(name, step)
    values = usual[name].dropna().to_numpy() if name in usual else np.empty(0)
    values = values[np.isfinite(values)]
    middle = float(np.median(values)) if len(values) else None
    spread = 1.4826 * float(np.median(np.abs(values - middle))) if middle is not None else 0.0
    return MetricCheck(
        logged=then,
        replayed=float(value),
        agrees=then is None or agrees(then, float(value), tolerance),
        usual=middle,
        sigmas=(float(value) - middle) / spread if middle is not None and spread > 0 else None,
    )


def _group(name: str, metrics: dict[str, MetricCheck]) -> Group:
    gradient, update, norm = (metrics[f"{kind}/{name}"] for kind in ("grad_norm", "update_rms", "param_norm"))
    return Group(name, gradient.replayed, gradient.usual, update.replayed, update.usual, norm.replayed)


def _spike_of(logged: LoggedRun, step: int) -> dict[str, Any] | None:
    spikes = [e for e in logged.events if e["event"] == "spike" and e["start_step"] <= step <= e["end_step"]]
    return max(spikes, key=lambda e: (e["signal"] == "loss/nll", e["height"] or 0.0)) if spikes else None


def _history(logged: LoggedRun, step: int) -> dict[str, list[float | None]]:
    rows = logged.metrics.loc[step - AROUND : step + AROUND]
    history: dict[str, list[float | None]] = {"step": [float(s) for s in rows.index]}
    for name in ("loss/nll", "grad_norm/total"):
        history[name] = [logged.value(name, s) for s in rows.index]
    return history


def _write(explanation: Explanation, tokens: TokenTable, out: Path) -> None:
    """Everything of the explanation, into ``out``; the summary on the terminal."""
    with style.look():
        figure = draw_explanation(explanation, tokens)
        style.save_figure(figure, out / "figure.png")
    write_json(out / "explanation.json", {"reproduced": explanation.reproduced, **asdict(explanation)})
    table = _token_frame(tokens)
    write_atomically(out / "tokens.parquet", lambda file: table.to_parquet(file, index=False))
    commands = [shlex.join(["python", "-m", "analysis.replay", *sys.argv[1:]])]
    write_text(out / "page.html", page(explanation, (out / "figure.png").read_bytes(), commands))
    print("\n".join(summary_lines(explanation)))


def _token_frame(tokens: TokenTable) -> pd.DataFrame:
    sequence_BT, position_BT = np.indices(tokens.token_id_BT.shape)
    columns: dict[str, Any] = {"sequence": sequence_BT, "position": position_BT, "token_id": tokens.token_id_BT}
    columns |= {"nll": tokens.nll_BT, "objective": tokens.objective_BT}
    if tokens.weight_BT is not None:
        columns["weight"] = tokens.weight_BT
    return pd.DataFrame({name: values.ravel() for name, values in columns.items()})


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

"""Taking one step apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from record.finished import Run as LoggedRun

from .explanation import Explanation, Group, MetricCheck, TokenTable
from .retake import agrees, compare, replay, tolerance_for

if TYPE_CHECKING:
    from training.run import Run


USUAL = 64
"""So many rows before the step say what is usual."""
AROUND = 60
"""Rows shown on either side of the step."""


def explain(
    run: Run, logged: LoggedRun, step: int, detailed: int, keep_state: bool
) -> tuple[Explanation, TokenTable, dict[str, Any]]:
    """Replay to ``step`` and take it apart. Also returns, if asked for, the state before it (see counterfactual.py)."""
    import torch

    from stability.stress.base import describe_stresses
    from training.step import step_batch

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
    scales = [value for name, value in row.items() if name.startswith("intervention/") and name.endswith("/scale")]
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
        stress=describe_stresses(run.stresses, step, run.batch_number(step)),
        spike=_spike_of(logged, step),
        usual_window=(int(usual.index[0]), int(usual.index[-1])) if len(usual) else (0, 0),
        metrics=metrics,
        clipped_by=math.prod(scales) if scales else None,
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

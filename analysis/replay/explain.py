"""Replaying a run up to a step, and explaining that step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from data.batches import IGNORED
from record.finished import Run as LoggedRun
from stability.stress.base import SHORTLY, describe_stresses
from training.run import Run
from training.step import lose_targets, negative_rows, reshaped, step_batch

from .explanation import Explanation, Group, Layer, MetricCheck, TokenTable
from .measure import describe_sequences, layer_norms, moved_embeddings, sequence_gradients
from .rerun import agrees, disagreements, disturbed, replay_to, snapshot, tolerance_for

USUAL = 64
"""Logged steps before the step that define what is usual."""
AROUND = 60
"""Logged steps shown on either side of the step."""
HISTORY = ("step", "loss/nll", "grad_norm/total")


def explain(
    run: Run, logged: LoggedRun, step: int, detailed: int, keep_state: bool
) -> tuple[Explanation, TokenTable, dict[str, Any]]:
    """Replay to ``step`` and explain it; also returns the state before the step if it is to be kept."""
    start, (tolerance, reason) = run.step, tolerance_for(run, logged)
    rows = list(replay_to(run, step - 1))
    before = snapshot(run, start) if keep_state else {}
    model, tokenizer, batch = run.bare_model(), run.store.load_tokenizer(), run.batch_number(step)
    x_BT, y_BT = (ids.to(run.accelerator.device) for ids in step_batch(run, step))
    model.eval()
    counted = (y_BT != IGNORED).sum()
    lose_targets(run, step, y_BT)
    embedding_VD = model.get_input_embeddings().weight
    with disturbed(run, step):
        negative_K = negative_rows(run, step)
        gradients, tokens = sequence_gradients(model, run.telemetry.group_norms, x_BT, y_BT, counted, negative_K)
        indices = _sequences_of_rows(run, step)
        sequences = describe_sequences(model, tokenizer, gradients, tokens, x_BT, indices, detailed)
        nll_before, norms_before = layer_norms(model, x_BT, y_BT)
        old_VD = embedding_VD.detach().clone()

    model.train()
    run.edge_every = 1
    rows += replay_to(run, step)
    model.eval()
    nll_after, norms_after = layer_norms(model, x_BT, y_BT)
    model.train()
    usual = logged.metrics.loc[: step - 1].tail(USUAL)
    metrics = {name: _check(name, value, logged, usual, step, tolerance) for name, value in rows[-1].items()}
    clipping = [f"intervention/{name}/scale" for name, i in run.interventions.items() if i.has("on_gradient")]
    scales = [rows[-1][name] for name in clipping if name in rows[-1]]
    spikes = [e for e in logged.events if e["event"] == "spike" and e["start_step"] <= step <= e["end_step"]]
    around = logged.metrics.loc[step - AROUND : step + AROUND].index
    explanation = Explanation(
        run=logged.name,
        run_directory=str(logged.path),
        step=step,
        checkpoint=start,
        batch=batch,
        device=str(run.accelerator.device),
        tolerance=tolerance,
        tolerance_reason=reason,
        disagreements=[name for replayed in rows for name in disagreements(logged, replayed, tolerance)],
        steps_compared=sum(replayed["step"] in logged.metrics.index for replayed in rows),
        stress=[*describe_stresses(run.stresses, step, batch), *_stresses_before(run, step)],
        spike=max(spikes, key=lambda e: (e["signal"] == "loss/nll", e["height"] or 0.0), default=None),
        usual_window=(int(usual.index[0]), int(usual.index[-1])) if len(usual) else (0, 0),
        metrics=metrics,
        clipped_by=float(np.min(scales)) if scales else None,  # NaN if any is
        nll_before=nll_before,
        nll_after=nll_after,
        sequences=sequences,
        groups=[_group(n, metrics) for n in run.telemetry.group_norms.names if metrics.keys() >= {*_of_group(n)}],
        embeddings=moved_embeddings(tokenizer, old_VD, embedding_VD, x_BT, y_BT, count=12),
        layers=[Layer(name, *norms_before[name], *norms_after[name]) for name in norms_before],
        history={name: [logged.value(name, s) for s in around] for name in HISTORY},
    )
    return explanation, tokens, before


def _stresses_before(run: Run, step: int) -> list[str]:
    """A line for each stress that acted in the last steps before, and no longer does."""
    found = []
    for stress in run.stresses:
        acted = (s for s in range(step, max(0, step - SHORTLY - 1), -1) if stress.acts(s, run.batch_number(s)))
        last = next(acted, step)
        if last < step:
            ago = "1 step" if step - last == 1 else f"{step - last} steps"
            found.append(f"{ago} before: {stress.describe(last, run.batch_number(last))}")
    return found


def _sequences_of_rows(run: Run, step: int) -> list[int]:
    """The sequence of the text that each row of the batch comes from, in the shape that stresses give the batch."""
    index_R = torch.from_numpy(run.batches.sequences(run.batch_number(step)))
    index_RT = index_R[:, None].repeat(1, run.config.data.sequence_length)
    rows, _ = reshaped(run, step, index_RT, index_RT)
    return rows[:, 0].tolist()


def _check(name: str, value: float, logged: LoggedRun, usual: pd.DataFrame, step: int, tolerance: float) -> MetricCheck:
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


def _of_group(name: str) -> list[str]:
    """The metrics that a group's line has, of which telemetry.families may leave some out."""
    return [f"{kind}/{name}" for kind in ("grad_norm", "update_rms", "param_norm")]


def _group(name: str, metrics: dict[str, MetricCheck]) -> Group:
    gradient, update, norm = (metrics[key] for key in _of_group(name))
    return Group(name, gradient.replayed, gradient.usual, update.replayed, update.usual, norm.replayed)

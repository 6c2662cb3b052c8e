"""The steps around a spike, taken again: as they were, and under each experiment.

Shapes: B sequences, T positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.replay.rerun import disagreements, load_changed, replay_to, restore, snapshot, tolerance_for
from common.errors import InputError
from ranks.collectives import only_looking
from record.finished import Run as LoggedRun
from training.run import Run, attach_interventions, interventions_of
from training.step import step_batch, training_step

from .conclude import REMOVED, Evidence, Level, level_of, removed
from .experiments import IN_FP32, Conditions, Experiment, Window

LEAD = 4
"""Steps before a spike's start at which the changes begin: what starts it may act before it shows."""
MOST = 48
"""Steps of a window, at most."""
AFTER = 6
"""Steps after the peak, at least."""
USUAL = 32
"""Logged steps before the window that say what is usual."""
UNSEEN = 24
"""Batches after the window's first, at least, among which the spike's own are judged."""
Rows = dict[int, dict[str, Any]]


@dataclass(frozen=True)
class Found:
    """A spike's window, what it was like, and what each experiment made of it."""

    window: Window
    signal: str
    level: Level
    logged: list[float | None]
    """The signal from USUAL steps before the window on."""
    again: list[float]
    """The signal over the window with nothing changed, and by experiment."""
    changed: dict[str, list[float]]
    left_out: dict[str, str]
    """Experiments that the run's model does not allow, and why."""
    evidence: Evidence
    disagreements: list[str]
    tolerance: float
    steps_taken: int


def window_of(logged: LoggedRun, run: Run, spike: Mapping[str, Any]) -> Window:
    """The window of a spike, given by its start_step, peak_step and end_step."""
    rows, total = logged.metrics, run.config.train.steps
    start, peak = int(spike["start_step"]), int(spike["peak_step"])
    first = max(run.step + 1, start - LEAD)
    last = min(max(int(spike["end_step"]), peak + AFTER), first + MOST - 1, total, int(rows.index[-1]))
    before = rows.loc[: first - 1].tail(USUAL)
    if len(before) < 8:
        raise InputError(
            f"step {start}: only {len(before)} logged steps before step {first}, where its experiments begin; "
            "8 at least say what is usual"
        )
    rates = {int(step): float(rows["lr"].loc[step]) for step in range(first, last + 1)}
    drew = run.batch_number(first), run.batch_number(min(max(peak, int(spike["end_step"])), last))
    return Window(first, start, peak, last, drew, rates, float(before["lr"].iloc[-1]), _usual_update(run, before))


def _usual_update(run: Run, before: pd.DataFrame) -> float | None:
    """The median norm of the updates of these rows; None if fewer than 8 of them have it."""
    groups = run.telemetry.group_norms
    counts = groups.root_count_G.double().square().tolist()
    names = [f"update_rms/{name}" for name in groups.names]
    if not set(names) <= set(before.columns):
        return None
    norms = np.sqrt(sum(before[name] ** 2 * count for name, count in zip(names, counts, strict=True)))
    finite = norms[np.isfinite(norms)]
    return float(finite.median()) if len(finite) >= 8 else None


def investigate(
    run: Run,
    logged: LoggedRun,
    spike: Mapping[str, Any],
    tried: Callable[[Window], list[Experiment]],
    progress: Callable[[str, int], None],
) -> tuple[Found, dict[str, Any]]:
    """Take the steps of a spike again, as they were and under each experiment; also returns the state before them. ``progress``:
    told of each experiment's steps."""
    signal = str(spike["signal"]) if spike["signal"] in logged.metrics else "loss/nll"
    start = run.step
    window = window_of(logged, run, spike)
    tolerance, _ = tolerance_for(run, logged)
    different = [n for row in replay_to(run, window.first - 1) for n in disagreements(logged, row, tolerance)]
    before = snapshot(run, start)
    sigmas = _batch_sigmas(run, window)
    progress("the same again", window.last - window.first + 1)
    rows = _take(run, before, window, None)
    different += [n for row in rows.values() for n in disagreements(logged, row, tolerance)]
    logarithm = not signal.startswith("loss/")
    usual = [_value(v, logarithm) for v in logged.metrics[signal].loc[: window.first - 1].tail(USUAL)]
    level = level_of([v for v in usual if v is not None], _ceiling(signal, run.store.vocab_size, usual))
    own = [_value(logged.value(signal, s), logarithm) for s in range(window.first, window.last + 1)]
    spiked = level.excess([math.nan if v is None else v for v in own])
    if spiked == 0:
        raise InputError(
            f"step {window.start}: {signal} is not above its usual level there, the median of the {USUAL} steps before and "
            "2 sigmas: there is no spike, or it falls too fast to judge one"
        )
    again, changed, shares, taken = _series(rows, signal, window, logarithm), {}, {}, len(rows)
    left_out: dict[str, str] = {}
    gone = removed(spiked, level.excess(again))
    for experiment in tried(window) if gone < REMOVED else ():  # there is nothing left to remove
        progress(experiment.name, window.last - window.first + 1)
        try:
            found = _take(run, before, window, experiment)
        except InputError as error:  # an intervention that this body or optimizer does not take
            left_out[experiment.name] = str(error)
            continue
        taken += len(found)
        changed[experiment.name] = _series(found, signal, window, logarithm)
        shares[experiment.name] = (experiment.cause, removed(spiked, level.excess(changed[experiment.name])))
    signs = [rows[s].get("adam/sign_like", 0.0) for s in range(window.first, window.start) if s in rows]
    signs = [x if math.isfinite(x) else 0.0 for x in signs] or [0.0]
    differs = int(different[0].split(":")[0].removeprefix("step ")) if different else None
    agreed = (window.last + 1 if differs is None else differs) - start - 1
    evidence = Evidence(
        differs,
        agreed,
        tolerance == 0,
        gone,
        shares,
        sigmas,
        _logit_sigmas(logged, window),
        max(signs),
        signs[0],
    )
    logs = [*usual, *own]
    return Found(window, signal, level, logs, again, changed, left_out, evidence, different, tolerance, taken), before


def _value(value: float | None, logarithm: bool) -> float | None:
    """A signal's value as it is judged: the logarithm of a norm."""
    if value is None or not logarithm:
        return value
    return math.log(value) if value > 0 and math.isfinite(value) else (math.inf if value > 0 else None)


def _series(rows: Rows, signal: str, window: Window, logarithm: bool) -> list[float]:
    """The signal over the window; infinite from where it is not finite, or the run has ended."""
    found = []
    for step in range(window.first, window.last + 1):
        value = _value(rows[step].get(signal) if step in rows else None, logarithm)
        found.append(math.inf if value is None or math.isnan(value) else value)
    return found


def _take(run: Run, before: dict[str, Any], window: Window, experiment: Experiment | None) -> Rows:
    """The rows of the window's steps from the snapshot ``before``, with what the experiment changes."""
    factual, settings, every = run.config, run.settings, run.edge_every
    run.edge_every = 1 if experiment is None else None
    try:
        if experiment is not None:
            if experiment.name == IN_FP32 and not hasattr(run.bare_model(), "_original_forward"):
                raise InputError(
                    "Accelerate has not wrapped the model's forward pass, so its autocast cannot be left out"
                )
            run.config = load_changed(run, experiment.overrides)
        restore(run, before)
        if experiment is not None:
            attach_interventions(run, run.interventions | {"conditions": Conditions(experiment)})
            o = run.config.optimizer.options
            if "beta2" in o:
                run.settings = [s | {"betas": (o["beta1"], o["beta2"])} if "betas" in s else s for s in settings]
        with _in_fp32(run, experiment is not None and experiment.name == IN_FP32):
            rows: Rows = {}
            while run.step < window.last:
                training_step(run, run.step + 1)
                rows |= {row["step"]: row for row in run.recorder.transfer().rows}
            return rows
    finally:
        run.config, run.settings, run.edge_every = factual, settings, every
        attach_interventions(run, interventions_of(factual))


@contextmanager
def _in_fp32(run: Run, wanted: bool) -> Iterator[None]:
    """Without the autocast that Accelerate has put around the model's forward pass."""
    model = run.bare_model()
    if not wanted:
        yield
        return
    wrapped = model.forward
    model.forward = model._original_forward
    try:
        yield
    finally:
        model.forward = wrapped


def _ceiling(signal: str, vocab_size: int, usual: Sequence[float | None]) -> float:
    """What a value of the signal counts for at most: a loss for that of guessing blindly, the logarithm of a norm for a thousand
    times the largest usual one."""
    if signal.startswith("loss/"):
        return math.log(vocab_size)
    return max(v for v in usual if v is not None) + math.log(1000)


def _logit_sigmas(logged: LoggedRun, window: Window) -> float:
    """By how many sigmas the logits' mean log partition function or their spread has left what it was before the window."""
    found = [0.0]
    for name in ("logit/logsumexp", "logit/std"):
        if name in logged.metrics:
            usual = level_of(list(logged.metrics[name].loc[: window.first - 1].tail(USUAL)))
            now = logged.metrics[name].loc[window.first : window.start - 1].to_numpy()
            found += list(np.abs(now - usual.median) / max(usual.sigma, 1e-12))
    return float(np.nanmax(found))


def _batch_sigmas(run: Run, window: Window) -> float:
    """By how many sigmas the loss of the spike's batches stands out among those that follow the snapshot, at its weights."""
    model, found = run.bare_model(), {}
    last = min(max(window.last, window.first + UNSEEN), run.config.train.steps)
    with only_looking(model):
        for step in range(window.first, last + 1):
            x_BT, y_BT = (ids.to(run.accelerator.device) for ids in step_batch(run, step))
            rows = run.config.train.micro_batch_size or len(x_BT)
            losses = [
                model(input_ids=x_RT, shift_labels=y_RT, skip_logits=True, use_cache=False).losses
                for x_RT, y_RT in zip(x_BT.split(rows), y_BT.split(rows), strict=True)
            ]
            found[step] = sum(float(x.nll_sum) for x in losses) / sum(float(x.valid_N.sum()) for x in losses)
    suspects = range(max(window.first, window.start - 1), window.peak + 1)
    others = level_of([nll for step, nll in found.items() if step not in suspects] or list(found.values()))
    return max((found[s] - others.median) / max(others.sigma, 1e-12) for s in suspects if s in found)

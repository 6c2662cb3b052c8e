"""Taking one step of a replayed run, and measuring how near the edge it came.

Shapes: B sequences, T positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from data.batches import IGNORED
from ranks.collectives import only_looking
from stability.measure.edge import cosine, dot, moments_of
from training.run import Run
from training.step import lose_targets, step_batch, training_step

from .curvature import along, gradient_curvature, hessian_product, preconditioned_sharpness, threshold

MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
LARGEST = 50_000_000
"""Parameters beyond which Lanczos' vectors would take gigabytes: their sharpness is left out."""


@dataclass(frozen=True)
class Point:
    """The loss of the step's batch at a multiple of its step; 0 is before it."""

    multiple: float
    objective: float
    nll: float


@dataclass(frozen=True)
class StepMeasured:
    """A step, its line search, and what each signal says of it."""

    step: int
    row: dict[str, float]
    """What the run measures itself."""
    line: list[Point]
    safe_multiple: float
    """The smallest multiple of the step at which the batch's objective is back at its start; infinite if it is at none tried."""
    best_multiple: float
    """The multiple with the lowest objective."""
    signals: dict[str, float | None]
    """By name, of which larger means nearer to the edge."""
    predicted: dict[str, float | None]
    """The safe multiple that each signal predicts; None if it says nothing."""


@dataclass(frozen=True)
class Vectors:
    """A step's gradient and change, kept for the comparison with the next step's."""

    gradient: list[Tensor]
    change: list[Tensor]


@dataclass(frozen=True)
class _Taken:
    """A step that has just been taken: its row, its batch, the parameters after it, and by how much it has changed them."""

    row: dict[str, Any]
    x_BT: Tensor
    y_BT: Tensor
    kept_BT: Tensor
    """The targets without those that a stress has lost."""
    after: list[Tensor]
    change: list[Tensor]
    buffers_after: list[Tensor]
    """The model's, which has those of the step's forward pass while the step is measured: sigmaReparam's change after it."""


def _take(run: Run) -> _Taken:
    step = run.step + 1
    x_BT, y_BT = step_batch(run, step)
    kept_BT = y_BT.clone()
    lose_targets(run, step, kept_BT)
    x_BT, y_BT, kept_BT = (ids.to(run.accelerator.device) for ids in (x_BT, y_BT, kept_BT))
    run.edge_every = 1
    run.telemetry.keep_before()
    buffers = [b.clone() for b in run.bare_model().buffers()]
    training_step(run, step)
    (row,) = run.recorder.transfer().rows
    after = [p.detach().clone() for p in run.telemetry.parameters]
    buffers_after = [b.clone() for b in run.bare_model().buffers()]
    _set(list(run.bare_model().buffers()), buffers)
    # Measured by the step itself: from where a stress may have moved the weights to.
    change = [-difference for difference in run.telemetry.before]
    return _Taken(row, x_BT, y_BT, kept_BT, after, change, buffers_after)


def take_vectors(run: Run) -> tuple[dict[str, Any], Vectors]:
    """Take the run's next step; returns its row, and what the measurement of the step after it needs."""
    taken = _take(run)
    try:
        return taken.row, Vectors(_gradient_before(run, taken), taken.change)
    finally:
        _put_back(run, taken)


def take_step(run: Run, *, sequences: int, previous: Vectors | None = None) -> tuple[StepMeasured, Vectors]:
    """Take the run's next step, and measure it; ``sequences`` of its batch are used for second derivatives.

    Gradients and losses are those of evaluation mode, without dropout and penalties.
    """
    taken = _take(run)
    try:
        line = list(_line_search(run, taken))
        new = batch_gradient(run, taken, taken.after)
        old = _gradient_before(run, taken)  # and the parameters are there
        own = _curvature(run, taken, old, sequences)
    finally:
        _put_back(run, taken)
    bend = [b - a for a, b in zip(old, new, strict=True)]
    own["gradient change"] = math.sqrt(float(dot(bend, bend)) / max(float(dot(old, old)), 1e-300))
    if previous is not None:
        own["successive gradients"] = -float(cosine(old, previous.gradient))
        own["successive updates"] = -float(cosine(taken.change, previous.change))
    best = min((p for p in line if math.isfinite(p.objective)), key=lambda p: p.objective, default=line[0])
    signals = _signals(taken.row) | own
    safe, predicted = safe_multiple(line), predictions(signals)
    found = StepMeasured(run.step, taken.row, line, safe, best.multiple, signals, predicted)
    return found, Vectors(old, taken.change)


def _gradient_before(run: Run, taken: _Taken) -> list[Tensor]:
    """The gradient before the step; the parameters are left there."""
    before = [a - d for a, d in zip(taken.after, taken.change, strict=True)]
    return batch_gradient(run, taken, before)


def _put_back(run: Run, taken: _Taken) -> None:
    _set(run.telemetry.parameters, taken.after)
    _set(list(run.bare_model().buffers()), taken.buffers_after)
    run.bare_model().train()


def _set(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def _parts(run: Run, *tensors: Tensor) -> Any:
    """The step's micro-batches."""
    rows = run.config.train.micro_batch_size or len(tensors[0])
    return zip(*(t.split(rows) for t in tensors), strict=True)


def _line_search(run: Run, taken: _Taken) -> Iterator[Point]:
    """The batch's loss at 0 and at each of MULTIPLES times the step."""
    model = run.bare_model()
    for multiple in (0.0, *MULTIPLES):
        place = [a + (multiple - 1) * d for a, d in zip(taken.after, taken.change, strict=True)]
        _set(run.telemetry.parameters, place)
        with only_looking(model):
            found = [
                model(input_ids=x_RT, shift_labels=y_RT, skip_logits=True, use_cache=False).losses
                for x_RT, y_RT in _parts(run, taken.x_BT, taken.y_BT)
            ]
        count = sum(float(each.valid_N.sum()) for each in found)
        objective = sum(float((each.objective_N.double() * each.valid_N).sum()) for each in found)
        yield Point(multiple, objective / count, sum(float(each.nll_sum) for each in found) / count)


def batch_gradient(run: Run, taken: _Taken, place: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of the step's batch with the parameters at ``place``."""
    model, parameters = run.bare_model(), run.telemetry.parameters
    _set(parameters, place)
    model.eval()
    count, total = (taken.y_BT != IGNORED).sum(), [torch.zeros_like(p) for p in parameters]
    for x_RT, y_RT in _parts(run, taken.x_BT, taken.kept_BT):
        options = {"num_items_in_batch": count, "skip_logits": True, "use_cache": False}
        loss = model(input_ids=x_RT, shift_labels=y_RT, **options).loss
        torch._foreach_add_(total, torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))
    return total


def _curvature(run: Run, taken: _Taken, gradient: list[Tensor], sequences: int) -> dict[str, float | None]:
    """Signals from second derivatives of the NLL of some sequences, at the parameters as they are: those before the step."""
    model, parameters, lr = run.bare_model(), run.telemetry.parameters, taken.row["lr"]
    x_BT, y_BT = taken.x_BT[:sequences], taken.y_BT[:sequences]
    moments = moments_of(run.optimizer.optimizer, parameters)
    denominators = None
    if moments is not None:
        denominators = [(m["exp_avg_sq"] / (1 - m["betas"][1] ** m["step"].float())).sqrt() + m["eps"] for m in moments]

    def loss() -> Tensor:
        logits_BTV = model(input_ids=x_BT, use_cache=False).logits[..., : model.lm_head.n_classes]
        return cross_entropy(logits_BTV.flatten(0, 1).float(), y_BT.flatten(), ignore_index=IGNORED)

    found: dict[str, float | None] = {}
    # The fused kernels of attention have no second derivative.
    with sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager"), torch.enable_grad():
        product = hessian_product(loss, parameters)
        slope = abs(float(dot(gradient, taken.change)))
        found["curvature along the step"] = along(product, taken.change) / (2 * slope) if slope else None
        if moments is not None and denominators is not None:
            limit = threshold(lr, moments[0]["betas"][0]) if lr > 0 else math.inf
            found["curvature along the gradient"] = gradient_curvature(product, gradient, denominators) / limit
            count = sum(p.numel() for p in parameters)
            sharpness = preconditioned_sharpness(product, denominators) if count <= LARGEST else None
            found["sharpness"] = None if sharpness is None else sharpness / limit
    return found


def safe_multiple(line: Sequence[Point]) -> float:
    """The multiple of the step at which the objective is first back at its start, between the points of a line search on a
    logarithmic scale of multiples; infinite if at none. 0 stands for a start that every multiple tried is above."""
    start, last = line[0].objective, line[0]
    for point in line[1:]:
        if not point.objective < start:  # NaN counts as above
            if last.multiple == 0:
                return 0.0
            rise = point.objective - last.objective
            share = (start - last.objective) / rise if math.isfinite(rise) and rise > 0 else 0.0
            return float(last.multiple * (point.multiple / last.multiple) ** share)
        last = point
    return math.inf


def _signals(row: dict[str, float]) -> dict[str, float | None]:
    """The cheap signals of a step's row."""
    found: dict[str, float | None] = {"kappa": 1 - row["edge/kappa"]}
    found |= {f"logit change, {name}": row[f"edge/logit_change_{name}"] for name in ("p50", "p99", "max")}
    rms = [value for name, value in row.items() if name.startswith("adam_rms/")]
    if rms:
        found |= {"Adam's RMS": max(rms), "sign-like share": row["adam/sign_like"]}
    if "adam/momentum_cosine" in row:
        found["against momentum"] = -row["adam/momentum_cosine"]
    found["gradient norm"] = row["grad_norm/total"]
    found["update ratio"] = max(value for name, value in row.items() if name.startswith("update_ratio/"))
    return {name: value if value is not None and math.isfinite(value) else None for name, value in found.items()}


PREDICT = (
    *("kappa", "curvature along the step", "curvature along the gradient", "sharpness"),
    *("logit change, p50", "logit change, p99", "logit change, max"),
)
"""Signals whose value 1 is said to be the edge: they predict a safe multiple of one over their value."""


def predictions(signals: dict[str, float | None]) -> dict[str, float | None]:
    """The safe multiple that each signal of PREDICT predicts: infinite where it sees no curvature at all."""
    known = {name: signals.get(name) for name in PREDICT}
    return {name: None if x is None else (1 / x if x > 0 else math.inf) for name, x in known.items()}

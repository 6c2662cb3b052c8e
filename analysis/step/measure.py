"""Taking one step of a replayed run, and measuring how near the edge it came.

Shapes: B sequences, T positions, V vocabulary.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from data.batches import IGNORED
from model.objectives import WithPenalties
from ranks.collectives import only_looking
from stability.measure.edge import cosine, dot, moments_of
from training.negatives import Rows, told
from training.run import Run
from training.step import lose_targets, negative_rows, step_batch, training_step

from .curvature import along, gradient_curvature, hessian_product, preconditioned_sharpness, threshold
from .signals import (
    ALONG_GRADIENT,
    ALONG_STEP,
    GRADIENT_CHANGE,
    GRADIENT_TURN,
    SHARPNESS,
    SHARPNESS_OF_NLL,
    UPDATE_TURN,
    Signals,
    finite,
    logged_signals,
    predictions,
)
from .whole_loss import NegativeLogLikelihood, whole_loss

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
    signals: Signals
    """By name; None if it could not be measured or is not finite."""
    predicted: Signals
    """The safe multiple that a signal predicts (:func:`predictions`)."""


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
    negative_K: Rows | None
    """The rows that are negatives."""
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
    return _Taken(row, x_BT, y_BT, kept_BT, negative_rows(run, step), after, change, buffers_after)


def take_vectors(run: Run) -> tuple[dict[str, Any], Vectors]:
    """Take the run's next step; returns its row, and what the measurement of the step after it needs."""
    taken = _take(run)
    try:
        return taken.row, Vectors(_gradient_before(run, taken), taken.change)
    finally:
        _put_back(run, taken)


def take_step(run: Run, *, sequences: int, previous: Vectors | None = None) -> tuple[StepMeasured, Vectors]:
    """Take the run's next step, and measure it; ``sequences`` of its batch are used for the sharpness.

    Losses and gradients are those of the objective that is trained, with penalties, but without dropout. (A term that an
    intervention adds to the gradient alone, as mu_loss does, is in the step but in none of them.) The two curvatures along
    directions are differences of that gradient on the whole batch, and so right for any objective. The sharpness takes second
    derivatives of the objective; where that has none, because a part of it is detached (``detached``, as TFSD), it is that
    of the NLL and is called so. It leaves negatives out.
    """
    taken = _take(run)
    try:
        line = list(_line_search(run, taken))
        new = batch_gradient(run, taken, taken.after)
        old = _gradient_before(run, taken)  # and the parameters are there
        own = _curvatures(run, taken, old, sequences)
    finally:
        _put_back(run, taken)
    bend = [b - a for a, b in zip(old, new, strict=True)]
    own[GRADIENT_CHANGE] = math.sqrt(float(dot(bend, bend)) / max(float(dot(old, old)), 1e-300))
    if previous is not None:
        own[GRADIENT_TURN] = float(cosine(old, previous.gradient))
        own[UPDATE_TURN] = float(cosine(taken.change, previous.change))
    best = min((p for p in line if math.isfinite(p.objective)), key=lambda p: p.objective, default=line[0])
    signals = logged_signals(taken.row) | finite(own)
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


def _parts(run: Run, taken: _Taken, y_BT: Tensor) -> Iterator[dict[str, Tensor]]:
    """The step's micro-batches with these targets, as the model takes them."""
    rows = run.config.train.micro_batch_size or len(y_BT)
    for number, (x_RT, y_RT) in enumerate(zip(taken.x_BT.split(rows), y_BT.split(rows), strict=True)):
        told_of = told(taken.negative_K, number * rows, rows, x_RT.device)
        yield {"input_ids": x_RT, "shift_labels": y_RT, **told_of}


@contextlib.contextmanager
def _as_trained(model: Any) -> Iterator[None]:
    """Within the block an evaluation has the penalties that training adds to the objective."""
    model.penalised_evaluation = True
    try:
        yield
    finally:
        model.penalised_evaluation = False


def _line_search(run: Run, taken: _Taken) -> Iterator[Point]:
    """The batch's loss, negatives included, at 0 and at each of MULTIPLES times the step."""
    model = run.bare_model()
    for multiple in (0.0, *MULTIPLES):
        place = [a + (multiple - 1) * d for a, d in zip(taken.after, taken.change, strict=True)]
        _set(run.telemetry.parameters, place)
        with only_looking(model), _as_trained(model):
            found = [
                model(**inputs, skip_logits=True, use_cache=False).losses for inputs in _parts(run, taken, taken.y_BT)
            ]
        count = sum(float(each.valid_N.sum()) for each in found)
        objective = sum(float(each.trained_sum) for each in found)
        yield Point(multiple, objective / count, sum(float(each.nll_sum) for each in found) / count)


def batch_gradient(run: Run, taken: _Taken, place: Sequence[Tensor]) -> list[Tensor]:
    """The gradient that training takes of the step's batch, with the parameters at ``place``, where they are left."""
    model, parameters = run.bare_model(), run.telemetry.parameters
    _set(parameters, place)
    model.eval()
    count, total = (taken.y_BT != IGNORED).sum(), [torch.zeros_like(p) for p in parameters]
    for inputs in _parts(run, taken, taken.kept_BT):
        options = {"num_items_in_batch": count, "skip_logits": True, "use_cache": False}
        with _as_trained(model):
            loss = model(**inputs, **options).loss
        torch._foreach_add_(total, torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))
    return total


def _curvatures(run: Run, taken: _Taken, gradient: list[Tensor], sequences: int) -> Signals:
    """Curvatures at the parameters before the step, which are left there: two along directions, and the largest of all."""
    parameters, lr = run.telemetry.parameters, taken.row["lr"]
    before = [p.detach().clone() for p in parameters]

    def gradient_at(place: Sequence[Tensor]) -> list[Tensor]:
        return batch_gradient(run, taken, place)

    slope = abs(float(dot(gradient, taken.change)))
    found: Signals = {ALONG_STEP: along(gradient_at, before, taken.change) / (2 * slope) if slope else None}
    moments = moments_of(run.optimizer.optimizer, parameters)
    if moments is not None:
        denominators = [(m["exp_avg_sq"] / (1 - m["betas"][1] ** m["step"].float())).sqrt() + m["eps"] for m in moments]
        limit = threshold(lr, moments[0]["betas"][0]) if lr > 0 else math.inf
        found[ALONG_GRADIENT] = gradient_curvature(gradient_at, before, denominators) / limit
        _set(parameters, before)
        largest = _sharpness(run, taken, denominators, sequences)
        found[SHARPNESS_OF_NLL if _detached(run) else SHARPNESS] = None if largest is None else largest / limit
    _set(parameters, before)
    return found


def _detached(run: Run) -> bool:
    """Whether the training gradient is not that of a plain function of the parameters, as with TFSD's detached weights."""
    return bool(run.bare_model().objective.detached)


def _sharpness(run: Run, taken: _Taken, denominators: list[Tensor], sequences: int) -> float | None:
    """The preconditioned sharpness at the parameters as they are: of the objective, penalties included, or of the NLL where the
    objective has no Hessian."""
    model, parameters = run.bare_model(), run.telemetry.parameters
    if sum(p.numel() for p in parameters) > LARGEST:
        return None
    x_BT, y_BT = taken.x_BT[:sequences], taken.kept_BT[:sequences]
    plain = NegativeLogLikelihood(None) if _detached(run) else WithPenalties(model.objective, model.penalties)
    # The fused kernels of attention have no second derivative, nor has the loss in chunks.
    with sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager"), torch.enable_grad():
        product = hessian_product(lambda: whole_loss(model, plain, x_BT, y_BT), parameters)
        return preconditioned_sharpness(product, denominators)


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

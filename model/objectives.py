"""Training objectives: a token's loss as a function of its logits.

An objective that only asks how the target compares with the rest is a function of a few numbers per token
(:class:`TokenLogits`). Its gradient for V logits follows by the chain rule, so it never needs an N x V tensor and is
ordinary differentiable code on vectors. One that asks for more (``uses_rows``) gets all logits of a chunk of tokens.

Shapes: N tokens (of a chunk), V vocabulary, D width, E width of a teacher.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rivals import Rivals
from .teaching import Teacher


@dataclass(frozen=True)
class TokenLogits:
    """What an objective may use of the logits z of N tokens with target y; all (N,), differentiable."""

    true: Tensor
    """z_y"""
    negatives: Tensor
    """L = log sum_{k != y} exp(z_k)"""
    mean: Tensor
    """mean over k of z_k; only set for objectives with ``uses_mean``"""
    largest_negative: Tensor
    """max_{k != y} z_k; differentiable only for objectives with ``uses_largest``"""
    shift: Tensor
    """The constant that the head adds to all logits of the token (:meth:`Head.shift`); 0 for a linear head"""
    rows: Tensor | None = None
    """z (N, V), of which the others are functions then; only for objectives with ``uses_rows``"""
    target: Tensor | None = None
    """y (N,), with ``rows``"""
    taught: Tensor | None = None
    """The teacher's logits (N, V), fixed; only for objectives with a teacher"""
    rivals: Tensor | None = None
    """z_k (N, K) of some other classes than y (rivals.py); only for objectives with ``uses_batch`` or ``uses_likeliest``"""
    auxiliary: Tensor | None = None
    """Logits (N, V) of the head's auxiliary head; only for objectives with ``uses_auxiliary``"""

    @property
    def largest(self) -> Tensor:
        """max_k z_k"""
        return torch.maximum(self.true, self.largest_negative)


def of_rows(
    z_NV: Tensor, y_N: Tensor, shift_N: Tensor, taught_NV: Tensor | None = None, rivals: Rivals | None = None
) -> TokenLogits:
    """All of it as functions of the logits z_NV, and a teacher's beside them."""
    y_N1 = y_N[:, None]
    others_NV = z_NV.scatter(1, y_N1, float("-inf"))
    true_N = z_NV.gather(1, y_N1).squeeze(1)
    rivals_NK = None if rivals is None else rivals.logits(z_NV, None, torch.zeros_like(shift_N), y_N)[1]
    numbers = (true_N, others_NV.logsumexp(1), z_NV.mean(1), others_NV.amax(1), shift_N)
    return TokenLogits(*numbers, z_NV, y_N, taught_NV, rivals_NK)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)). torch's is x beyond 20 unless told otherwise, which in float64 is off by up to 2e-9."""
    return F.softplus(x, threshold=40) if x.dtype == torch.float64 else F.softplus(x)


def negative_log_likelihood(t: TokenLogits) -> Tensor:
    """-log P_y = log(1 + exp(L - z_y)) in nats; its two partial derivatives are exact negatives of each other."""
    return softplus(t.negatives - t.true)


def log_partition(t: TokenLogits) -> Tensor:
    """log sum_k exp(z_k) over the whole vocabulary."""
    return torch.logaddexp(t.negatives, t.true)


def tfsd_weight(t: TokenLogits) -> Tensor:
    """c = Q_y (1 - exp(z_y)) with Q_y = 1/(1+S), S = exp(L): the factor by which TFSD scales the gradient of CE. In [0, 1)
    for a head whose logits are at most 0 (docs/mathematics.md, section 2)."""
    return -torch.sigmoid(-t.negatives) * torch.expm1(t.true)


def check_temperature(temperature: float) -> None:
    """Raise ValueError for a temperature that no distribution is taken at."""
    if not 0.01 <= temperature <= 1000:
        raise ValueError(f"temperature must be from 0.01 to 1000, not {temperature}")


class StepState(nn.Module):
    """A number that an objective reads and that moves after every step: ``value`` (1,), not a parameter."""

    value: Tensor

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.register_buffer("value", torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin anew."""
        nn.init.constant_(self.value, self.initial)

    @torch.no_grad()
    def move_to(self, value_1: Tensor) -> None:
        """Take a new value, unless it is not finite."""
        self.value.copy_(torch.where(value_1.isfinite(), value_1, self.value))


class Objective:
    """Base of all objectives: ``loss`` maps :class:`TokenLogits` to a loss per token (N,), differentiable by autograd."""

    uses_mean = False
    """Whether ``loss`` reads ``TokenLogits.mean``."""
    uses_largest = False
    """Whether ``loss`` reads ``TokenLogits.largest`` or ``largest_negative``: costs a pass over the logits."""
    uses_rows = False
    """Whether ``loss`` reads ``TokenLogits.rows``: its gradient is then by autograd on chunks of N x V."""
    uses_batch = False
    """Whether ``loss`` reads, as ``TokenLogits.rivals``, the logits of the distinct targets of the batch, other than its own:
    costs two passes over the logits, and more over those of the rivals."""
    uses_likeliest = 0
    """How many of the largest logits besides the target's ``loss`` reads as ``TokenLogits.rivals``, in descending order."""
    uses_auxiliary = False
    """Whether ``loss`` reads ``TokenLogits.auxiliary``: it needs a head that has it."""
    mixes_positions = ""
    """How the loss of a token depends on other positions of the batch than those before it, if it does; a run says so."""
    teacher: Teacher | None = None
    """Whose logits ``loss`` reads as ``TokenLogits.taught``."""
    state: StepState | None = None
    """What moves with the steps, if anything: in checkpoints with the model's weights."""
    aligns = False
    """Whether ``of_states`` is a part of the objective in training."""
    projects = False
    """Whether it gets a linear map from the width of the model to that of the teacher, a parameter of the model."""
    weight_of_states = 0.0
    """Of that part, beside ``loss``."""
    uses_weight = False
    """Whether the loss uses the TFSD weight."""
    detached = False
    """Whether a part of the loss is held fixed, so that its gradient has no second derivatives of its own."""
    shift_invariant = False
    """Whether adding a constant to all logits of a token, and to ``TokenLogits.shift``, changes nothing; its gradient, mere
    rounding, is then not computed."""

    @dataclass(frozen=True)
    class Options:
        """No options."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def loss(self, t: TokenLogits) -> Tensor:
        """Loss of each token (N,)."""
        raise TypeError(f"{type(self).__name__} must define loss()")

    def terms(self, t: TokenLogits) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss, and parts of it (N,) to report with the statistics of the logits, by metric name."""
        return self.loss(t), {}

    def after_step(self, means: Mapping[str, Tensor]) -> None:
        """Move ``state``, given the step's metrics: the parts that ``terms`` returns are means over all its tokens, on all
        ranks. On the device, without waiting for it, and also where the step's update was skipped."""

    def of_states(self, h_ND: Tensor, taught_NE: Tensor, valid_N: Tensor, projection: nn.Module | None) -> Tensor:
        """A loss () of the last hidden states of the tokens together, beside the teacher's."""
        raise TypeError(f"{type(self).__name__} must define of_states()")


@dataclass(frozen=True)
class Penalty:
    """A loss of each token (N,) that is added to the objective in training."""

    name: str
    """The metric under which its mean is reported."""
    loss: Callable[[TokenLogits], Tensor]
    uses_mean: bool = False
    uses_largest: bool = False
    shift_invariant: bool = False
    uses_rows: bool = False
    teacher: Teacher | None = None
    """These as in :class:`Objective`."""


class WithPenalties(Objective):
    """The sum of an objective and penalties."""

    def __init__(self, objective: Objective, penalties: Sequence[Penalty]) -> None:
        super().__init__(objective.options)
        self.objective, self.penalties = objective, penalties
        self.uses_mean = objective.uses_mean or any(p.uses_mean for p in penalties)
        self.uses_largest = objective.uses_largest or any(p.uses_largest for p in penalties)
        self.uses_rows = objective.uses_rows or any(p.uses_rows for p in penalties)
        teachers = (objective.teacher, *(p.teacher for p in penalties))
        self.teacher = next((teacher for teacher in teachers if teacher is not None), None)
        self.uses_batch, self.uses_likeliest = objective.uses_batch, objective.uses_likeliest
        self.uses_auxiliary = objective.uses_auxiliary
        self.uses_weight, self.detached = objective.uses_weight, objective.detached
        self.shift_invariant = objective.shift_invariant and all(p.shift_invariant for p in penalties)

    def loss(self, t: TokenLogits) -> Tensor:
        return self.terms(t)[0]

    def terms(self, t: TokenLogits) -> tuple[Tensor, Mapping[str, Tensor]]:
        loss, parts = self.objective.terms(t)
        penalties = {p.name: p.loss(t) for p in self.penalties}
        return sum(penalties.values(), start=loss), {**parts, **penalties}

"""Training objectives: what a token's loss is, given its logits.

Every objective here, and any that asks only how the target compares with the rest, is a function of three numbers per
token (:class:`TokenLogits`). Its gradient with respect to V logits then follows from the chain rule on those three, so an
objective never sees an N x V tensor and is written as ordinary differentiable code on vectors of length N.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .registry import register_objective


@dataclass(frozen=True)
class TokenLogits:
    """What an objective may use of the logits z of each of N tokens with target y; all (N,), differentiable."""

    true: Tensor
    """z_y"""
    negatives: Tensor
    """L = log sum_{k != y} exp(z_k)"""
    mean: Tensor
    """mean over k of z_k; filled in only for objectives with ``uses_mean``"""


def negative_log_likelihood(t: TokenLogits) -> Tensor:
    """-log P_y = log(1 + exp(L - z_y)) in nats; its two partial derivatives are exact negatives of each other."""
    return F.softplus(t.negatives - t.true)


def log_partition(t: TokenLogits) -> Tensor:
    """log sum_k exp(z_k) over the whole vocabulary."""
    return torch.logaddexp(t.negatives, t.true)


def tfsd_weight(t: TokenLogits) -> Tensor:
    """c = Q_y (1 - exp(z_y)) with Q_y = 1/(1+S), S = exp(L): the factor by which TFSD scales the gradient of CE.

    In [0, 1) for a head whose logits are at most 0 (docs/mathematics.md, section 2).
    """
    return -torch.sigmoid(-t.negatives) * torch.expm1(t.true)


def tfsd_value(t: TokenLogits) -> Tensor:
    """KL(Q || P), where Q is P's softmax with the target's logit replaced by 0.

    With a = sigmoid(-|L|) and u = z_y or -z_y as L >= 0 or not: log1p(a expm1(u)) - a u; for large u the first term in a
    form that does not overflow. Near z_y = 0 the two terms agree to all but a factor of u, so they are taken in float64:
    the relative error in float32 is then at most 1e-7 from |z_y| = 1e-8 on, and 1e-5 at 1e-10.
    """
    true, size = t.true.double(), t.negatives.double().abs()
    a = torch.sigmoid(-size)
    u = torch.where(t.negatives >= 0, true, -true)
    far = F.softplus(u - size) - F.softplus(-size)
    near = torch.log1p(a * torch.expm1(u.clamp(max=60)))
    return (torch.where(u > 60, far, near) - a * u).to(t.true.dtype)


class Objective:
    """Base of all objectives: ``loss`` maps :class:`TokenLogits` to a loss per token (N,), differentiable by autograd."""

    uses_mean = False
    """Whether ``loss`` reads ``TokenLogits.mean``."""
    uses_weight = False
    """Whether the TFSD weight takes part in the loss."""
    shift_invariant = False
    """Whether a constant added to all logits of a token has no gradient; that of the rounding is then not computed."""

    @dataclass(frozen=True)
    class Options:
        """No options."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def loss(self, t: TokenLogits) -> Tensor:
        """Loss of each token (N,)."""
        raise TypeError(f"{type(self).__name__} must define loss()")


@register_objective("ce")
class CrossEntropy(Objective):
    """-log P_y, with label smoothing e: target (1-e) onehot + e/V; and z-loss: + coefficient * (log Z)^2 on the true logits."""

    @dataclass(frozen=True)
    class Options:
        label_smoothing: float = 0.0
        z_loss: float = 0.0

        def __post_init__(self) -> None:
            if not 0 <= self.label_smoothing < 1:
                raise ValueError(f"label_smoothing must be in [0, 1), not {self.label_smoothing}")
            if not self.z_loss >= 0:
                raise ValueError(f"z_loss must not be negative, not {self.z_loss}")

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.uses_mean = options.label_smoothing > 0
        self.shift_invariant = options.z_loss == 0

    def loss(self, t: TokenLogits) -> Tensor:
        loss = negative_log_likelihood(t)
        if self.options.label_smoothing:
            e = self.options.label_smoothing
            loss = (1 - e) * loss + e * (log_partition(t) - t.mean)
        if self.options.z_loss:
            loss = loss + self.options.z_loss * log_partition(t).square()
        return loss


@register_objective("weighted_ce")
class WeightedCrossEntropy(Objective):
    """c * (-log P_y) with c, the TFSD weight, detached: the ablation that must train exactly as TFSD does."""

    uses_weight = True
    shift_invariant = True

    def loss(self, t: TokenLogits) -> Tensor:
        return tfsd_weight(t).detach() * negative_log_likelihood(t)


@register_objective("tfsd")
class TFSD(WeightedCrossEntropy):
    """Teacher-Free Self-Distillation (Pisoni 2026): KL(Q || P) with Q detached.

    Its gradient equals that of :class:`WeightedCrossEntropy` at every logit (docs/mathematics.md, section 2; tested), so it
    is taken from there, where it is exact in float32; the value is that of the KL.
    """

    def loss(self, t: TokenLogits) -> Tensor:
        gradient_carrier = super().loss(t)
        return gradient_carrier + (tfsd_value(t) - gradient_carrier).detach()

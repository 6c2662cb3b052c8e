"""Training objectives: a token's loss as a function of its logits.

An objective that only asks how the target compares with the rest is a function of three numbers per token
(:class:`TokenLogits`). Its gradient for V logits follows by the chain rule, so it never needs an N x V tensor and is
ordinary differentiable code on vectors.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class TokenLogits:
    """What an objective may use of the logits z of N tokens with target y; all (N,), differentiable."""

    true: Tensor
    """z_y"""
    negatives: Tensor
    """L = log sum_{k != y} exp(z_k)"""
    mean: Tensor
    """mean over k of z_k; only set for objectives with ``uses_mean``"""


def negative_log_likelihood(t: TokenLogits) -> Tensor:
    """-log P_y = log(1 + exp(L - z_y)) in nats; its two partial derivatives are exact negatives of each other."""
    return F.softplus(t.negatives - t.true)


def log_partition(t: TokenLogits) -> Tensor:
    """log sum_k exp(z_k) over the whole vocabulary."""
    return torch.logaddexp(t.negatives, t.true)


def tfsd_weight(t: TokenLogits) -> Tensor:
    """c = Q_y (1 - exp(z_y)) with Q_y = 1/(1+S), S = exp(L): the factor by which TFSD scales the gradient of CE. In [0, 1)
    for a head whose logits are at most 0 (docs/mathematics.md, section 2)."""
    return -torch.sigmoid(-t.negatives) * torch.expm1(t.true)


class Objective:
    """Base of all objectives: ``loss`` maps :class:`TokenLogits` to a loss per token (N,), differentiable by autograd."""

    uses_mean = False
    """Whether ``loss`` reads ``TokenLogits.mean``."""
    uses_weight = False
    """Whether the loss uses the TFSD weight."""
    shift_invariant = False
    """Whether adding a constant to all logits of a token changes nothing; its gradient, mere rounding, is then not
    computed."""

    @dataclass(frozen=True)
    class Options:
        """No options."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def loss(self, t: TokenLogits) -> Tensor:
        """Loss of each token (N,)."""
        raise TypeError(f"{type(self).__name__} must define loss()")

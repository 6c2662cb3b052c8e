"""Teacher-Free Self-Distillation, and the weighted cross-entropy that it equals."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .objectives import Objective, TokenLogits, negative_log_likelihood, tfsd_weight
from .registry import register_objective


def tfsd_value(t: TokenLogits) -> Tensor:
    """KL(Q || P), where Q is P's softmax with the target's logit replaced by 0.

    With a = sigmoid(-|L|) and u = z_y or -z_y as L >= 0 or not: log1p(a expm1(u)) - a u, for large u with a first term that
    does not overflow. Near z_y = 0 the two terms nearly cancel, so they are computed in float64: the relative error in
    float32 is then at most 1e-7 from |z_y| = 1e-8 on, and 1e-5 at 1e-10.
    """
    true, size = t.true.double(), t.negatives.double().abs()
    a = torch.sigmoid(-size)
    u = torch.where(t.negatives >= 0, true, -true)
    far = F.softplus(u - size) - F.softplus(-size)
    near = torch.log1p(a * torch.expm1(u.clamp(max=60)))
    return (torch.where(u > 60, far, near) - a * u).to(t.true.dtype)


@register_objective("weighted_ce")
class WeightedCrossEntropy(Objective):
    """c * (-log P_y) with c, the TFSD weight, detached: the ablation that must train exactly like TFSD."""

    uses_weight = True
    shift_invariant = True

    def loss(self, t: TokenLogits) -> Tensor:
        return tfsd_weight(t).detach() * negative_log_likelihood(t)


@register_objective("tfsd")
class TFSD(WeightedCrossEntropy):
    """Teacher-Free Self-Distillation (Pisoni 2026): KL(Q || P) with Q detached.

    Its gradient equals that of :class:`WeightedCrossEntropy` at every logit (docs/mathematics.md, section 2; tested) and is
    taken from there, where it is exact in float32; the value is that of the KL.
    """

    def loss(self, t: TokenLogits) -> Tensor:
        gradient_carrier = super().loss(t)
        return gradient_carrier + (tfsd_value(t) - gradient_carrier).detach()

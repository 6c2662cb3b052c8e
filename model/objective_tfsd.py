"""Teacher-Free Self-Distillation, the weighted cross-entropy that it equals, and TFSD with another anchor than 0."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from .objective_weighted import Weighted
from .objectives import TokenLogits, log_partition, negative_log_likelihood, softplus, tfsd_weight
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
    far = softplus(u - size) - softplus(-size)
    near = torch.log1p(a * torch.expm1(u.clamp(max=60)))
    return (torch.where(u > 60, far, near) - a * u).to(t.true.dtype)


@register_objective("tfsd")
class TFSD(Weighted):
    """Teacher-Free Self-Distillation (Pisoni 2026): KL(Q || P) with Q detached.

    Its gradient is c (P - onehot) at every logit with c = Q_y (1 - exp(z_y)) (docs/mathematics.md, section 2; tested) and is
    computed so, which is exact in float32; the value is that of the KL.
    """

    uses_weight = True
    detached = True

    def weight(self, t: TokenLogits) -> Tensor:
        return tfsd_weight(t)

    def value(self, t: TokenLogits) -> Tensor:
        return tfsd_value(t)

    def terms(self, t: TokenLogits) -> tuple[Tensor, Mapping[str, Any]]:
        return self.loss(t), {}  # tfsd/weight is reported of every token


@register_objective("weighted_ce")
class WeightedCrossEntropy(TFSD):
    """c * (-log P_y) with c, the TFSD weight, detached: the ablation that must train exactly like TFSD."""

    def value(self, t: TokenLogits) -> Tensor:
        return self.weight(t) * negative_log_likelihood(t)


class RaisedTFSD(Weighted):
    """Base of TFSD whose target raises the true logit to a level a of the token, detached, instead of to 0:
    c = Q_y (1 - exp(z_y - a)). If a moves with the logits, no constant that is added to all of them changes c, so it fits every
    head, and c does not vanish where all logits are far below 0."""

    detached = True

    @abstractmethod
    def level(self, t: TokenLogits) -> Tensor:
        """a of each token (N,)."""

    def weight(self, t: TokenLogits) -> Tensor:
        return tfsd_weight(self._moved(t))

    def value(self, t: TokenLogits) -> Tensor:
        return tfsd_value(self._moved(t))

    def _moved(self, t: TokenLogits) -> TokenLogits:
        """The logits relative to the level."""
        level = self.level(t)
        return replace(t, true=t.true - level, negatives=t.negatives - level)


@register_objective("tfsd_anchored")
class AnchoredTFSD(RaisedTFSD):
    """TFSD with the true logit raised to a fixed distance from the token's other logits.

    With a = log Z + m, c = (e^m - p) / (e^m + 1 - p) depends on p alone: from e^m / (e^m + 1) at p = 0 to 1 - e^-m at p = 1.
    With a = max_k z_k + m and m = 0, c is 0 as soon as the target is the most probable token.
    """

    @dataclass(frozen=True)
    class Options:
        anchor: Literal["largest", "log_partition"] = "log_partition"
        """The level: largest = max_k z_k; log_partition = log sum_k exp(z_k)."""
        margin: float = 0.0
        """m, added to the level, in nats; the larger, the more like cross-entropy."""

        def __post_init__(self) -> None:
            if not 0 <= self.margin <= 100:
                raise ValueError(f"margin must be from 0 to 100, not {self.margin}")

    def level(self, t: TokenLogits) -> Tensor:
        return (t.largest if self.options.anchor == "largest" else log_partition(t)) + self.options.margin

"""Losses of negatives, positions at which nothing is to be predicted: their hidden states should be near no class.

They are objectives without a target: what a class that only fills its place has as logit is of no consequence.

Shapes: N positions of negatives (of a chunk), V vocabulary, E classes besides it, M nearest classes.
"""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from .objectives import Objective, TokenLogits, log_partition

NegativeLossKind = Literal["hinge", "uniform", "others"]
LOSS, ACTIVE = "negative/loss", "negative/active"


class NegativeLoss(Objective):
    """Base: ``weight`` times ``each``, which is reported without it."""

    def __init__(self, weight: float, n_classes: int) -> None:
        super().__init__(Objective.Options())
        self.weight, self.n_classes = weight, n_classes

    def each(self, t: TokenLogits) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Loss of each position (N,), and what else is reported of them."""
        raise TypeError(f"{type(self).__name__} must define each()")

    def loss(self, t: TokenLogits) -> Tensor:
        return self.terms(t)[0]

    def terms(self, t: TokenLogits) -> tuple[Tensor, Mapping[str, Tensor]]:
        each_N, parts = self.each(t)
        return self.weight * each_N, {LOSS: each_N, **parts}


class Hinge(NegativeLoss):
    """sum over the M nearest classes of max(0, margin - d_k), with d_k = -z_k, the squared distance in the head's own unit:
    g ||h - w_k||^2 of the metric head (Pisoni 2026). Only for heads whose logits are at most 0. The outlier exposure of
    Hendrycks et al. 2019 (arXiv 1812.04606) has a margin too, between the likelihoods of text and of what is none."""

    uses_rows = True

    def __init__(self, weight: float, n_classes: int, margin: float, nearest: int) -> None:
        super().__init__(weight, n_classes)
        self.margin, self.nearest = margin, min(nearest, n_classes)

    def each(self, t: TokenLogits) -> tuple[Tensor, Mapping[str, Tensor]]:
        assert t.rows is not None
        d_NM = -t.rows[:, : self.n_classes].topk(self.nearest, dim=1).values
        terms_NM = (self.margin - d_NM).clamp(min=0)
        return terms_NM.sum(1), {ACTIVE: (terms_NM > 0).to(terms_NM.dtype).mean(1)}


class Uniform(NegativeLoss):
    """Cross-entropy towards the same probability of every class, -mean_k log P_k, whose least value is log V: what outlier
    exposure does to classifiers (Hendrycks et al. 2019, arXiv 1812.04606)."""

    uses_mean = True
    shift_invariant = True

    def each(self, t: TokenLogits) -> tuple[Tensor, Mapping[str, Tensor]]:
        return log_partition(t) - t.mean, {}


class Others(NegativeLoss):
    """-log of the probability of the classes besides the vocabulary (:attr:`Head.extra_classes`), which no target ever is."""

    uses_rows = True
    shift_invariant = True

    def each(self, t: TokenLogits) -> tuple[Tensor, Mapping[str, Tensor]]:
        assert t.rows is not None
        return t.rows.logsumexp(1) - t.rows[:, self.n_classes :].logsumexp(1), {}


def negative_loss(
    kind: NegativeLossKind, n_classes: int, *, weight: float, margin: float | None, nearest: int
) -> NegativeLoss:
    """The loss of a configuration; ``n_classes`` is the vocabulary's, ``margin`` and ``nearest`` are the hinge's."""
    if kind == "hinge":
        assert margin is not None
        return Hinge(weight, n_classes, margin, nearest)
    return {"uniform": Uniform, "others": Others}[kind](weight, n_classes)

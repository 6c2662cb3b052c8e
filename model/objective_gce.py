"""Generalised cross-entropy: between cross-entropy and the mean absolute error."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .objective_weighted import Weighted, log_true
from .objectives import TokenLogits
from .registry import register_objective


@register_objective("gce")
class GeneralisedCrossEntropy(Weighted):
    """(1 - p^q) / q (Zhang and Sabuncu 2018, arXiv 1805.07836): c = p^q. Small q is near cross-entropy; q = 1 is 1 - p, half
    the mean absolute error. What is predicted badly hardly counts: robust to wrong labels, and slow to begin with p = 1/V."""

    @dataclass(frozen=True)
    class Options:
        q: float = 0.7
        """Exponent; 1: the mean absolute error."""

        def __post_init__(self) -> None:
            if not 0 < self.q <= 1:
                raise ValueError(f"q must be above 0 and at most 1, not {self.q}")

    def weight(self, t: TokenLogits) -> Tensor:
        return (self.options.q * log_true(t)).exp()

    def value(self, t: TokenLogits) -> Tensor:
        return -torch.expm1(self.options.q * log_true(t)) / self.options.q

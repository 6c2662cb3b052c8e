"""Confidence threshold: tokens that are predicted well enough are left alone."""

import math
from dataclasses import dataclass

from torch import Tensor

from .objective_weighted import Weighted, log_true
from .objectives import TokenLogits
from .registry import register_objective


@register_objective("threshold")
class Threshold(Weighted):
    """max(0, log t - log p): cross-entropy up to the probability t, c = 1 where p < t and else 0."""

    @dataclass(frozen=True)
    class Options:
        probability: float = 0.9
        """t, from which on a token does not count."""

        def __post_init__(self) -> None:
            if not 0 < self.probability <= 1:
                raise ValueError(f"probability must be above 0 and at most 1, not {self.probability}")

    def weight(self, t: TokenLogits) -> Tensor:
        log_p = log_true(t)
        return (log_p < math.log(self.options.probability)).to(log_p.dtype)

    def value(self, t: TokenLogits) -> Tensor:
        return (math.log(self.options.probability) - log_true(t)).clamp(min=0)

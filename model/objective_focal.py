"""Focal loss: tokens that are already predicted well count less."""

from dataclasses import dataclass

from torch import Tensor

from .objective_weighted import Weighted, log_others, log_true
from .objectives import TokenLogits
from .registry import register_objective


@register_objective("focal")
class Focal(Weighted):
    """-(1 - p)^gamma log p (Lin et al. 2017, arXiv 1708.02002): c = (1 - p)^gamma - gamma p (1 - p)^(gamma - 1) log p, which
    exceeds 1 for middling p."""

    @dataclass(frozen=True)
    class Options:
        gamma: float = 2.0
        """How fast the weight falls with p; 0 is cross-entropy."""

        def __post_init__(self) -> None:
            if not 0 <= self.gamma <= 100:
                raise ValueError(f"gamma must be from 0 to 100, not {self.gamma}")

    def weight(self, t: TokenLogits) -> Tensor:
        gamma, log_p, log_q = self.options.gamma, log_true(t), log_others(t)
        # One exponential: where p is near 1 its factors are 0 and infinite.
        return (gamma * log_q).exp() + gamma * ((-log_p).log() + log_p + (gamma - 1) * log_q).exp()

    def value(self, t: TokenLogits) -> Tensor:
        return -log_true(t) * (self.options.gamma * log_others(t)).exp()

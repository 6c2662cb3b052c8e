"""Poly-1: cross-entropy with another first coefficient of its polynomial expansion."""

from dataclasses import dataclass

from torch import Tensor

from .objective_weighted import Weighted, log_others, log_true
from .objectives import TokenLogits
from .registry import register_objective


@register_objective("poly1")
class Poly1(Weighted):
    """-log p + epsilon (1 - p) (Leng et al. 2022, arXiv 2204.12511): c = 1 + epsilon p."""

    @dataclass(frozen=True)
    class Options:
        epsilon: float = 1.0
        """What is added to the first coefficient of -log p = sum_j (1 - p)^j / j; 0 is cross-entropy."""

        def __post_init__(self) -> None:
            if not -1 < self.epsilon <= 100:
                raise ValueError(f"epsilon must be above -1 and at most 100, not {self.epsilon}")

    def weight(self, t: TokenLogits) -> Tensor:
        return 1 + self.options.epsilon - self.options.epsilon * log_others(t).exp()

    def value(self, t: TokenLogits) -> Tensor:
        return -log_true(t) + self.options.epsilon * log_others(t).exp()

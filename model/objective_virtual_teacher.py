"""Distillation from a virtual teacher, who is nearly sure of the target and indifferent to the rest."""

import math
from dataclasses import dataclass

from torch import Tensor

from .objectives import Objective, TokenLogits, check_temperature, negative_log_likelihood
from .registry import register_objective


@register_objective("virtual_teacher")
class VirtualTeacher(Objective):
    """(1 - alpha) CE + alpha KL(T || P) (Tf-KD_reg of Yuan et al. 2020, arXiv 1909.11723): the teacher T gives the target the
    probability a and the rest 1 - a in equal shares; T and P are taken at a temperature.

    At temperature 1 it is label smoothing of alpha (1 - a) V / (V - 1). The authors' code applies a softmax to T's probabilities
    over the temperature, which at a vocabulary of thousands leaves T next to uniform; here the logarithms are divided by it.
    """

    uses_rows = True
    shift_invariant = True

    @dataclass(frozen=True)
    class Options:
        alpha: float = 0.1
        """Share of the teacher in the loss."""
        sure: float = 0.99
        """a: the target's probability by the teacher."""
        temperature: float = 1.0
        """By which the logarithms of T and P are divided; the teacher's part is not rescaled."""

        def __post_init__(self) -> None:
            if not 0 <= self.alpha <= 1:
                raise ValueError(f"alpha must be from 0 to 1, not {self.alpha}")
            if not 0 < self.sure < 1:
                raise ValueError(f"sure must be between 0 and 1, not {self.sure}")
            check_temperature(self.temperature)

    def loss(self, t: TokenLogits) -> Tensor:
        assert t.rows is not None and t.target is not None
        log_p_NV = (t.rows / self.options.temperature).log_softmax(1)
        true_N, others = log_p_NV.gather(1, t.target[:, None]).squeeze(1), log_p_NV.shape[1] - 1
        sure, each = self._teacher(others)
        entropy = -sure * math.log(sure) - others * each * math.log(each)
        teacher_N = -sure * true_N - each * (log_p_NV.sum(1) - true_N) - entropy
        return (1 - self.options.alpha) * negative_log_likelihood(t) + self.options.alpha * teacher_N

    def _teacher(self, others: int) -> tuple[float, float]:
        """T's probability of the target, and of each of the others."""
        odds = self.options.sure * others / (1 - self.options.sure)
        softened = odds ** (1 / self.options.temperature)
        return softened / (softened + others), 1 / (softened + others)

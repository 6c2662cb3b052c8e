"""Distillation into an auxiliary head, so that the logits' fit to a teacher's is no concern of the head that predicts."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from .objective_distill import FromTeacher, standardised
from .objectives import TokenLogits, check_temperature, negative_log_likelihood, softplus
from .registry import register_objective


@register_objective("dual_head")
class DualHeadDistillation(FromTeacher):
    """CE of the head + alpha BinaryKL of auxiliary and teacher's logits (DHKD, Yang et al. 2024, arXiv 2411.08937;
    distiller_zoo/BinaryKLNorm.py): with s the logits of head.kind=dual's auxiliary head and t the teacher's, T^2 times KL(1/2 ||
    sigmoid((s_k - t_k)/T)), a binary one for each k, that is T^2 log cosh((s_k - t_k) / (2 T)).

    It compares the logits themselves, constants included, and its gradient T/2 tanh((s_k - t_k) / (2 T)) in each is at most T/2.
    The authors sum it over their 100 or 1000 classes; a sum over a vocabulary of thousands would leave little of CE, so the
    default is the mean. The head's share of the gradient is cross-entropy's alone, the hidden states' that of both.
    """

    uses_rows = False
    uses_auxiliary = True

    @dataclass(frozen=True)
    class Options:
        teacher: str
        """A checkpoint of an earlier run with the same tokenizer: RUN/checkpoints/step_N."""
        alpha: float = 1.0
        """Weight of the auxiliary head's loss beside cross-entropy."""
        temperature: float = 2.0
        """T, of the difference of logits."""
        reduction: Literal["mean", "sum"] = "mean"
        """Of the auxiliary head's loss over the vocabulary; sum: as the authors."""
        standardise: bool = False
        """Standardise the logits of both in the auxiliary head's loss."""

        def __post_init__(self) -> None:
            if not 0 <= self.alpha <= 1000:
                raise ValueError(f"alpha must be from 0 to 1000, not {self.alpha}")
            check_temperature(self.temperature)

    def loss(self, t: TokenLogits) -> Tensor:
        assert t.auxiliary is not None and t.taught is not None
        temperature = self.options.temperature
        both = (t.auxiliary, t.taught)
        s_NV, t_NV = (standardised(z_NV) for z_NV in both) if self.options.standardise else both
        apart_NV = (s_NV - t_NV) / temperature
        log_cosh_NV = softplus(apart_NV) - apart_NV / 2 - math.log(2)
        binary_N = log_cosh_NV.mean(1) if self.options.reduction == "mean" else log_cosh_NV.sum(1)
        return negative_log_likelihood(t) + self.options.alpha * temperature**2 * binary_N

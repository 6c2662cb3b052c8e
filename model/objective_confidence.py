"""Confidence penalty: cross-entropy minus a share of the prediction's entropy."""

from dataclasses import dataclass

from torch import Tensor

from .objectives import Objective, TokenLogits, negative_log_likelihood
from .registry import register_objective


@register_objective("confidence_penalty")
class ConfidencePenalty(Objective):
    """-log p_y - beta H(P) (Pereyra et al. 2017, arXiv 1701.06548): the second part has the gradient beta P_k (log P_k + H) in
    each logit."""

    uses_rows = True
    shift_invariant = True

    @dataclass(frozen=True)
    class Options:
        beta: float = 0.1
        """Nats of loss for each nat of entropy."""

        def __post_init__(self) -> None:
            if not 0 <= self.beta <= 100:
                raise ValueError(f"beta must be from 0 to 100, not {self.beta}")

    def loss(self, t: TokenLogits) -> Tensor:
        assert t.rows is not None
        log_p_NV = t.rows.log_softmax(1)
        entropy_N = -(log_p_NV.exp() * log_p_NV).sum(1)
        return negative_log_likelihood(t) - self.options.beta * entropy_N

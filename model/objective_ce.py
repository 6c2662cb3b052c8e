"""Cross-entropy, with label smoothing and z-loss."""

from dataclasses import dataclass

from torch import Tensor

from .objectives import Objective, TokenLogits, log_partition, negative_log_likelihood
from .registry import register_objective


@register_objective("ce")
class CrossEntropy(Objective):
    """-log P_y, with label smoothing e: target (1-e) onehot + e/V; and z-loss: + coefficient * (log Z)^2 on the true logits."""

    @dataclass(frozen=True)
    class Options:
        label_smoothing: float = 0.0
        """e: share of the target spread over the vocabulary."""
        z_loss: float = 0.0
        """Coefficient of (log Z)^2."""

        def __post_init__(self) -> None:
            if not 0 <= self.label_smoothing < 1:
                raise ValueError(f"label_smoothing must be in [0, 1), not {self.label_smoothing}")
            if not self.z_loss >= 0:
                raise ValueError(f"z_loss must not be negative, not {self.z_loss}")

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.uses_mean = options.label_smoothing > 0
        self.shift_invariant = options.z_loss == 0

    def loss(self, t: TokenLogits) -> Tensor:
        loss = negative_log_likelihood(t)
        if self.options.label_smoothing:
            e = self.options.label_smoothing
            loss = (1 - e) * loss + e * (log_partition(t) - t.mean)
        if self.options.z_loss:
            loss = loss + self.options.z_loss * log_partition(t).square()
        return loss

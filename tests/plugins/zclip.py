"""ZClip (arXiv 2504.02507): clips gradient norms that stand out of their own running mean and deviation."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from record.metrics import Metric
from stability.intervene.base import INTERVENTIONS, Action, Intervention, Seen


@INTERVENTIONS.register("zclip")
class ZClip(Intervention):
    """Above ``threshold`` deviations, scales a norm to mean + threshold^2 / z deviations; the mean is fed the scaled norm."""

    metrics = (Metric("z", "1", "same", "deviations of the gradient norm from its running mean"),)

    @dataclass(frozen=True)
    class Options:
        threshold: float = 2.5
        decay: float = 0.97
        warmup: int = 25

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.sums: Tensor | None = None
        """Count, sum and sum of squares of the norms of the warm-up, then its mean and variance (float64)."""

    def on_gradient(self, seen: Seen) -> Action:
        o, norm = self.options, seen.gradient_norm.double()
        if self.sums is None:
            self.sums = norm.new_zeros(5)
        count, total, squares, mean, variance = self.sums.unbind()
        collecting = count < o.warmup
        deviation = variance.sqrt() + 1e-6
        z = torch.where(collecting, 0.0, (norm - mean) / deviation)
        clipped = torch.where(z > o.threshold, mean + o.threshold**2 / z * deviation, norm)
        usable = norm.isfinite()  # a NaN would stay in the mean for ever
        count, total, squares = count + 1, total + norm, squares + norm.square()
        at_last = total / count
        new_mean = torch.where(collecting, at_last, o.decay * mean + (1 - o.decay) * clipped)
        drift = o.decay * variance + (1 - o.decay) * (clipped - new_mean).square()
        new_variance = torch.where(collecting, squares / count - at_last.square(), drift)
        self.sums = torch.where(usable, torch.stack([count, total, squares, new_mean, new_variance]), self.sums)
        scale = torch.where(usable, clipped / (norm + 1e-6), 1.0).clamp(max=1.0).float()
        return Action(scale=scale, said={"z": z})

    def state(self) -> dict[str, Tensor]:
        return {} if self.sums is None else {"sums": self.sums}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.sums = state["sums"].clone()

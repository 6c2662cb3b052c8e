"""Clips the gradient norm to ``factor`` times its running mean."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from record.metrics import Metric
from stability.intervene.base import INTERVENTIONS, Action, Intervention, Seen


@INTERVENTIONS.register("clip_to_usual")
class ClipToUsual(Intervention):
    """The mean is fed clipped norms, so that one spike does not raise the limit."""

    metrics = (Metric("usual", "1", "same", "running mean of the gradient norm"),)

    @dataclass(frozen=True)
    class Options:
        factor: float = 2.0
        decay: float = 0.9

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.usual: Tensor | None = None

    def on_gradient(self, seen: Seen) -> Action:
        o, norm = self.options, seen.gradient_norm
        before = torch.zeros_like(norm) if self.usual is None else self.usual
        usual = torch.where(before > 0, before, norm)
        limit = o.factor * usual
        scale = torch.where(norm > limit, limit / norm, 1.0)
        mean = o.decay * usual + (1 - o.decay) * scale * norm
        self.usual = torch.where(norm.isfinite(), mean, before)  # a NaN would stay in the mean for ever
        return Action(scale=scale, said={"usual": usual})

    def state(self) -> dict[str, Tensor]:
        return {} if self.usual is None else {"usual": self.usual}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.usual = state["usual"].clone()

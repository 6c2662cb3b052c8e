"""Clipping of gradient norms that stand out of their own recent mean and deviation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from common.section import FLOAT32_MAX, MOST
from record.metrics import Metric

from .base import INTERVENTIONS, Action, Intervention, Seen

EPS = 1e-6


@INTERVENTIONS.register("zclip")
class ZClip(Intervention):
    """Clips a global gradient norm that lies more than ``threshold`` deviations above its running mean (ZClip, arXiv
    2504.02507).

    Published code: bluorion-com/ZClip, zclip/zclip.py, mode "zscore" with "adaptive_scaling". The first ``warmup`` norms give a
    mean and a population variance. From then on a norm z > threshold deviations above the mean is scaled to
    mean + threshold^2 / z deviations, and exponential averages of mean and variance (about the new mean) are fed the scaled
    norm. ``max_norm`` holds besides, during warm-up too, and is not what the averages are fed.

    Differs: a norm that is not finite leaves the averages alone, whereas there a single one disables clipping for good. The
    modes "percentile" and "mean", ``clip_factor`` and ``skip_update_on_spike`` are left out.
    """

    metrics = (Metric("z", "1", "same", "deviations of the gradient norm above its running mean; 0 during warm-up"),)

    @dataclass(frozen=True)
    class Options:
        threshold: Annotated[float, Field(gt=0, le=FLOAT32_MAX)] = 2.5
        """Deviations above the mean from which on a norm is clipped."""
        decay: Annotated[float, Field(ge=0, lt=1)] = 0.97
        """Of the running mean and variance."""
        warmup: Annotated[int, Field(ge=2, le=MOST)] = 25
        """Norms that the first mean and variance are taken of."""
        max_norm: Annotated[float, Field(gt=0, le=FLOAT32_MAX)] | None = 1.0
        """Largest norm in any case, as in the published code; null: none."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.averages: Tensor | None = None
        """(3,) count of norms, mean and variance, float64."""

    def first_steps(self) -> Iterable[tuple[int, str]]:
        return [(self.began + self.options.warmup + 1, "compares no norm with earlier ones")]

    def on_gradient(self, seen: Seen) -> Action:
        o, norm = self.options, seen.gradient_norm.double()
        averages = norm.new_zeros(3) if self.averages is None else self.averages
        count, mean, variance = averages.unbind()
        collecting, usable, std = count < o.warmup, norm.isfinite(), variance.sqrt()
        z = torch.where(collecting, 0.0, (norm - mean) / (std + EPS))
        clipped = torch.where(z > o.threshold, mean + o.threshold**2 / z * std, norm)
        self.averages = torch.where(usable, self._next(averages, clipped), averages)
        limit = clipped if o.max_norm is None else clipped.clamp(max=o.max_norm)
        scale = torch.where(usable & (norm > limit), limit / (norm + EPS), 1.0)
        return Action(scale=scale.float(), said={"z": z.float()})

    def _next(self, averages: Tensor, value: Tensor) -> Tensor:
        """The averages with one more value: exact ones up to the end of the warm-up, then exponential ones."""
        o = self.options
        count, mean, variance = averages.unbind()
        weight = torch.where(count < o.warmup, 1 / (count + 1), 1 - o.decay)
        new_mean = mean + weight * (value - mean)
        exact = (1 - weight) * variance + weight * (value - mean) * (value - new_mean)
        exponential = o.decay * variance + (1 - o.decay) * (value - new_mean).square()
        return torch.stack([count + 1, new_mean, torch.where(count < o.warmup, exact, exponential)])

    def state(self) -> dict[str, Tensor]:
        return {} if self.averages is None else {"averages": self.averages}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.averages = state["averages"].clone()

"""Clipping of each tensor's gradient by that tensor's own recent norms. Shapes: P parameters (tensors)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from common.section import FLOAT32_MAX, MOST
from record.metrics import Metric

from .adam_state import local
from .base import INTERVENTIONS, Intervention, Seen


@INTERVENTIONS.register("adagc")
class AdaGC(Intervention):
    """Clips each tensor's gradient to ``factor`` times a running mean of that tensor's clipped norms (AdaGC, arXiv
    2502.11034).

    In its first ``warmup`` steps the whole gradient is clipped to ``max_norm``, and each tensor keeps the smallest norm that it
    has had after this. Then its running mean starts from there. No code of the authors' is known; kozistr/pytorch_optimizer,
    optimizer/adagc.py, is a third party's, and warms up for a step less.

    Differs: a norm of 0 does not count, since a tensor that once had none would have its gradient set to 0 for ever; nor
    does any norm of a step whose gradient is not finite. Because the mean is fed clipped norms and starts from a minimum,
    it grows by 0.1% a step at most: in short runs nearly every tensor is clipped at nearly every step (``clipped_share``).
    """

    metrics = (Metric("clipped_share", "1", "same", "share of the tensors whose gradient was scaled down"),)

    @dataclass(frozen=True)
    class Options:
        factor: Annotated[float, Field(gt=0, le=FLOAT32_MAX)] = 1.05
        """Largest norm of a tensor's gradient, relative to its running mean."""
        decay: Annotated[float, Field(ge=0, lt=1)] = 0.98
        """Of the running mean."""
        warmup: Annotated[int, Field(ge=1, le=MOST)] = 100
        """Steps with a global limit."""
        max_norm: Annotated[float, Field(gt=0, le=FLOAT32_MAX)] = 1.0
        """Largest global norm during warm-up."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.usual_P: Tensor | None = None
        """The running mean of each tensor's norm; infinite before it has had one."""

    def first_steps(self) -> Iterable[tuple[int, str]]:
        return [(self.began + self.options.warmup + 1, "compares no tensor with its own norms")]

    @torch.no_grad()
    def on_tensors(self, seen: Seen) -> dict[str, Tensor]:
        o, norm_P = self.options, seen.gradient_norm_P.float()
        usual_P = torch.full_like(norm_P, math.inf) if self.usual_P is None else self.usual_P
        if seen.step - self.began <= o.warmup:
            scale_P = (o.max_norm / (seen.gradient_norm + 1e-6)).clamp(max=1.0).expand_as(norm_P)
            next_P = torch.minimum(usual_P, norm_P * scale_P)
        else:
            scale_P = (o.factor * usual_P / norm_P).clamp(max=1.0)
            clipped_P = norm_P * scale_P
            next_P = torch.where(usual_P.isinf(), clipped_P, o.decay * usual_P + (1 - o.decay) * clipped_P)
        counts_P = seen.gradient_norm.isfinite() & (norm_P > 0)
        scale_P = torch.where(counts_P, scale_P, 1.0)
        self.usual_P = torch.where(counts_P, next_P, usual_P)
        for parameter, scale in zip(seen.parameters, scale_P.unbind(), strict=True):
            if parameter.grad is not None:
                local(parameter.grad).mul_(scale)
        return {"clipped_share": (scale_P < 1).float().mean()}

    def state(self) -> dict[str, Tensor]:
        return {} if self.usual_P is None else {"usual": self.usual_P}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.usual_P = state["usual"].clone()

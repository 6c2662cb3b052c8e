"""Smaller updates of tensors whose gradient outgrows its second moment. Shapes: P parameters (tensors)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from common.section import FLOAT32_MAX
from record.metrics import Metric
from stability.measure.norms import tensor_norms

from .adam_state import refuse_without_moments, with_state
from .base import INTERVENTIONS, Action, Intervention, Seen, Update


@INTERVENTIONS.register("stable_adamw")
class StableAdamW(Intervention):
    """Divides each tensor's update by max(1, RMS), with RMS^2 the mean of g^2 / v over its elements (StableAdamW, arXiv
    2304.13013).

    Code: warner-benjamin/optimi, optimi/stableadamw.py. v is Adam's second moment after this step's update, without bias, and
    at least eps^2; g is the gradient that Adam has seen, clipped by whatever else acts. At the first step RMS is 1.

    The whole change is divided, weight decay included, as in optimi; the paper's algorithm divides the rate, to the same effect.
    """

    update_copies = 1  # g / sqrt(v)
    metrics = (Metric("largest_rms", "1", "same", "largest RMS of all tensors"),)

    @dataclass(frozen=True)
    class Options:
        threshold: Annotated[float, Field(gt=0, le=FLOAT32_MAX)] = 1.0
        """RMS above which a tensor's update is divided by RMS / threshold."""

    def attach(self, model: Any, optimizer: Optimizer) -> Sequence[RemovableHandle]:
        refuse_without_moments(self.kind, optimizer)
        self.optimizer = optimizer
        return ()

    @torch.no_grad()
    def on_update(self, seen: Seen, update: Update) -> Action:
        settings = {id(p): group for group in self.optimizer.param_groups for p in group["params"]}
        rms_P = list(update.taken.new_zeros(len(seen.parameters), dtype=torch.float32).unbind())
        found = list(with_state(self.optimizer, seen.parameters))
        ratios: list[Tensor] = []
        for _, parameter, state in found:
            assert parameter.grad is not None
            beta2, eps = settings[id(parameter)]["betas"][1], settings[id(parameter)]["eps"]
            unbiased = state["exp_avg_sq"] / (1 - beta2 ** state["step"])
            ratios.append(parameter.grad / unbiased.sqrt_().clamp_(min=eps))
        for (index, parameter, _), norm in zip(found, tensor_norms(ratios).unbind() if found else (), strict=True):
            rms_P[index] = norm / math.sqrt(parameter.numel())
        rms = torch.stack(rms_P)
        # Where the first step was skipped there is no moment, and RMS is not a number.
        scale_P = torch.where(update.taken, (self.options.threshold / rms).clamp(max=1.0), 1.0)
        return Action(scale=scale_P, said={"largest_rms": torch.where(update.taken, rms.max(), 0.0)})

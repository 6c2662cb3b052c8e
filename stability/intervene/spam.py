"""Clipping of single elements of the gradient that dwarf their own history, and moments that are forgotten now and then."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from common.section import FLOAT32_MAX, MOST
from ranks.collectives import all_reduce
from record.metrics import Metric

from .adam_state import forget, local, refuse_without_moments, with_state
from .base import INTERVENTIONS, Intervention, Seen


@INTERVENTIONS.register("spam")
class Spam(Intervention):
    """Clips elements of the gradient with g^2 > ``threshold`` v, and sets both moments to zero every ``every`` steps (SPAM,
    arXiv 2501.06842).

    Published code: TianjinYellow/SPAM-Optimizer, galore_torch/SPAM.py. v is Adam's second moment before this step's update and
    without bias correction; such an element is set to sign(g) sqrt(threshold v). At the steps that are multiples of ``every``
    both moments are zero before the update, and for ``pause`` steps from there on (and from the first on) nothing is clipped.
    The rate is multiplied by 1 - 0.99 (1 + cos(pi k / (warmup + 1))) / 2 at the k-th step after such a step, k = 0 included,
    and left alone from k = ``warmup`` on; the first steps are not warmed up. Steps are counted from where it began: in a branch
    that adds it, from the branch point. Adam's count of steps goes on, so that the first update after a reset is
    (1 - beta1) / sqrt(1 - beta2) per element, times a rate of 1%.

    Differs: weight decay is scaled with the rate. Two kinds of elements are not clipped: those whose v is 0, which have never
    had a gradient and would be set to 0 for ever, and those that are not finite. The published optimizer has beta2 = 0.999 and
    eps = 1e-6: set them in ``optimizer``. A step that is skipped forgets the moments as well.
    """

    metrics = (Metric("clipped_share", "1", "same", "share of the gradient's elements that were clipped"),)

    @dataclass(frozen=True)
    class Options:
        threshold: Annotated[float, Field(gt=0, le=FLOAT32_MAX)] = 5000.0
        """Largest square of an element, relative to its second moment."""
        every: Annotated[int, Field(ge=1, le=MOST)] | None = 500
        """Steps between resets of the moments; null: none."""
        pause: Annotated[int, Field(ge=1, le=MOST)] = 20
        """Steps without clipping, from the first step and from each reset on."""
        warmup: Annotated[int, Field(ge=0, le=MOST)] = 150
        """Steps over which the rate rises after each reset."""

    def attach(self, model: Any, optimizer: Optimizer) -> Sequence[RemovableHandle]:
        refuse_without_moments(self.kind, optimizer)
        self.optimizer = optimizer
        return ()

    def first_steps(self) -> Iterable[tuple[int, str]]:
        every, pause = self.options.every, self.options.pause
        clips = [(self.began + pause, "clips nothing")] if every is None or pause < every else []
        return clips + ([] if every is None else [(self.began + every, "forgets no moments")])

    def _since(self, step: int) -> int:
        """Steps since the last reset, or since it began."""
        own = step - self.began
        return own if self.options.every is None else own % self.options.every

    def rate(self, step: int) -> float:
        o, since = self.options, self._since(step)
        if o.every is None or step - self.began < o.every or since >= o.warmup:
            return 1.0
        return 1 - 0.99 * (1 + math.cos(math.pi * since / (o.warmup + 1))) / 2

    @torch.no_grad()
    def on_tensors(self, seen: Seen) -> dict[str, Tensor]:
        o, since = self.options, self._since(seen.step)
        if since == 0:
            forget(self.optimizer, seen.parameters)
        clipped, elements = seen.gradient_norm.new_zeros(()), 0
        for _, parameter, state in with_state(self.optimizer, seen.parameters) if since >= o.pause else ():
            assert parameter.grad is not None
            gradient, v = local(parameter.grad), local(state["exp_avg_sq"])
            # What is not finite stays so, for those that skip such steps to see.
            limit = torch.where((v > 0) & gradient.isfinite(), (o.threshold * v).sqrt(), math.inf)
            clipped += (gradient.abs() > limit).sum()
            elements += gradient.numel()
            torch.clamp(gradient, -limit, limit, out=gradient)
        counts = torch.stack([clipped, torch.full_like(clipped, max(elements, 1))])
        if isinstance(seen.parameters[0], DTensor):
            all_reduce(counts, "sum")
        return {"clipped_share": counts[0] / counts[1]}

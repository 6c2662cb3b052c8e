"""Forgetting Adam's moments after a gradient that stands out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from common.section import FLOAT32_MAX, MOST
from record.metrics import Metric

from .adam_state import forget, refuse_without_moments
from .base import INTERVENTIONS, Intervention, Seen, Update
from .window import Window


@INTERVENTIONS.register("reset_moments")
class ResetMoments(Intervention):
    """Sets both of Adam's moments to zero after an update whose gradient norm stands out.

    A reset at spikes instead of at planned steps, as SPAM (arXiv 2501.06842) has it; not published in this form. The norm is
    compared with the last ``window`` norms, as in skip_step. The update is made first, so that its gradient is forgotten as
    well; a skipped step forgets nothing. Adam's count of steps goes on: the next update is (1 - beta1) / sqrt(1 - beta2) per
    element (0.45 with beta2 = 0.95, 3.2 with 0.999), which calls for ``skip_step`` or a low beta2 beside it.
    """

    metrics = (
        Metric("reset", "1", "same", "1 where the moments were set to zero after the update, else 0"),
        Metric("sigmas", "1", "same", "deviations of the gradient norm above the window's mean; 0 before it acts"),
    )

    @dataclass(frozen=True)
    class Options:
        sigmas: Annotated[float, Field(gt=0, le=FLOAT32_MAX)] = 6.0
        """Deviations above the mean from which on a norm stands out."""
        window: Annotated[int, Field(ge=8, le=1 << 20)] = 128
        """Norms that the mean and the deviation are taken of; it acts from half of them on."""
        cooldown: Annotated[int, Field(ge=0, le=MOST)] = 100
        """Steps after a reset in which there is no other."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.norms = Window(options.window)
        self.waiting: Tensor | None = None
        """() steps of the cool-down that are left."""

    def attach(self, model: Any, optimizer: Optimizer) -> Sequence[RemovableHandle]:
        refuse_without_moments(self.kind, optimizer)
        self.optimizer = optimizer
        return ()

    def first_steps(self) -> Iterable[tuple[int, str]]:
        return [(self.began + self.options.window // 2 + 1, "resets nothing")]

    @torch.no_grad()
    def on_weights(self, seen: Seen, update: Update) -> dict[str, Tensor]:
        o, norm = self.options, seen.gradient_norm
        least = o.window // 2
        spread = self.norms.spread(norm, unbiased=True)
        high = (spread.count >= least) & (norm.double() - spread.mean > o.sigmas * spread.std)
        waiting = torch.zeros_like(high, dtype=torch.int64) if self.waiting is None else self.waiting
        reset = update.taken & high & (waiting == 0)
        self.waiting = torch.where(reset, o.cooldown, (waiting - 1).clamp(min=0))
        self.norms.push(norm)
        forget(self.optimizer, seen.parameters, reset)
        return {"reset": reset.float(), "sigmas": spread.sigmas(norm, least).float()}

    def state(self) -> dict[str, Tensor]:
        return self.norms.state("norms") | ({} if self.waiting is None else {"waiting": self.waiting})

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.norms.load("norms", state)
        self.waiting = state["waiting"].clone()

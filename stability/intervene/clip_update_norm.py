"""Clipping of the whole update by the norms of the last updates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from common.section import FLOAT32_MAX
from record.metrics import Metric
from stability.measure.norms import total_norm

from .base import INTERVENTIONS, Action, Intervention, Seen, Update
from .window import Window


@INTERVENTIONS.register("clip_update_norm")
class ClipUpdateNorm(Intervention):
    """Clips the norm of the whole update to mean + ``sigmas`` deviations of the last ``window`` updates.

    Published code: stanford-crfm/levanter, optim/clip_update_norm.py, in JAX; none for PyTorch is known. The update is Adam's
    with weight decay but before the rate, the deviation the population's and at least 1e-6. It acts once the window holds
    window / 2 earlier norms, and the window is fed norms as they were before clipping.

    Differs: the window lasts through stops, as everything in ``state`` does; a step that is skipped does not enter it. With
    ``per_rate: false`` it is the change of the parameters that is clipped, so that a rate that is suddenly too high stands out.
    """

    metrics = (Metric("norm", "1", "same", "norm of the update that is compared, before clipping"),)

    @dataclass(frozen=True)
    class Options:
        sigmas: Annotated[float, Field(ge=0, le=FLOAT32_MAX)] = 3.0
        """Deviations above the mean to which a norm is clipped."""
        window: Annotated[int, Field(ge=4, le=1 << 20)] = 128
        """Norms that the mean and the deviation are taken of."""
        per_rate: bool = True
        """Compare updates per unit of learning rate, as published."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.norms = Window(options.window)

    def attach(self, model: Any, optimizer: Optimizer) -> Sequence[RemovableHandle]:
        self.optimizer = optimizer
        return ()

    def first_steps(self) -> Iterable[tuple[int, str]]:
        return [(self.began + self.options.window // 2 + 1, "clips nothing")]

    def on_update(self, seen: Seen, update: Update) -> Action:
        o = self.options
        rate = self.optimizer.param_groups[0]["lr"] if o.per_rate else 1.0
        norm = total_norm(update.norm_P).double() / (rate or 1.0)
        spread = self.norms.spread(norm, unbiased=False)
        limit = spread.mean + o.sigmas * spread.std.clamp(min=1e-6)
        acts = update.taken & (spread.count >= o.window // 2) & (norm > limit)
        if rate:  # without a rate there is no update to compare
            self.norms.push(norm, update.taken)
        return Action(scale=torch.where(acts, limit / norm, 1.0).float(), said={"norm": norm.float()})

    def state(self) -> dict[str, Tensor]:
        return self.norms.state("norms")

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.norms.load("norms", state)

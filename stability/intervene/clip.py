"""Clipping of the global gradient norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from common.section import FLOAT32_MAX

from .base import INTERVENTIONS, Action, Intervention, Seen


@INTERVENTIONS.register("clip_norm")
class ClipNorm(Intervention):
    """Scales the gradient down to a maximum global norm, as torch.nn.utils.clip_grad_norm_ does.

    ``optimizer.clip_norm`` is a shorthand for it.
    """

    @dataclass(frozen=True)
    class Options:
        max_norm: Annotated[float, Field(gt=0, le=FLOAT32_MAX)]
        """Maximum global gradient norm."""

    def on_gradient(self, seen: Seen) -> Action:
        return Action(scale=(self.options.max_norm / (seen.gradient_norm + 1e-6)).clamp(max=1.0))

"""Shrinking of the gradient that reaches the input embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from .base import INTERVENTIONS, Intervention


class _Shrunk(torch.autograd.Function):
    """The same values; the gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


@INTERVENTIONS.register("shrink_embedding_gradient")
class ShrinkEmbeddingGradient(Intervention):
    """Multiplies the gradient of the embedded input by a factor (GLM-130B, arXiv 2210.02414: e a + detach(e) (1 - a)).

    The forward pass stays the same to the bit, where the published sum may round. With tied weights only the lookup's part of the
    gradient shrinks, not the output's. Adam divides a constant factor out again: of an untied embedding it then changes
    clipping, and updates where epsilon matters.
    """

    @dataclass(frozen=True)
    class Options:
        factor: Annotated[float, Field(ge=0, le=1)] = 0.1
        """a: share of the gradient that is kept."""

    def attach(self, model: Any, optimizer: Optimizer) -> Sequence[RemovableHandle]:
        factor = self.options.factor

        def shrink(module: nn.Module, arguments: Any, output: Tensor) -> Tensor | None:
            shrunk: Tensor | None = _Shrunk.apply(output, factor) if module.training else None
            return shrunk

        return (model.get_input_embeddings().register_forward_hook(shrink),)

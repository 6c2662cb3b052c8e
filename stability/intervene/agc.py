"""Clipping of the gradient of each output unit, relative to the norm of its weights. Shapes: P parameters (tensors)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from common.section import FLOAT32_MAX
from model.sigma_reparam import stored_weight
from record.metrics import Metric
from stability.measure.norms import full, tensor_norms, total_norm

from .adam_state import local
from .base import INTERVENTIONS, Intervention, Seen


@INTERVENTIONS.register("agc")
class AdaptiveClip(Intervention):
    """Clips the gradient of each output unit to a share of the norm of its weights (adaptive gradient clipping, arXiv
    2102.06171).

    Published code: google-deepmind/deepmind-research, nfnets/agc_optax.py. A unit is what computes one output: a row of a
    linear layer's weight, a column of GPT-2's Conv1D, a token's row of an embedding, and the whole of a gain or bias. Weights
    count as having a norm of ``least_norm`` at least, so that those which start at zero can grow.

    The last layer is left out, as the paper recommends: every parameter of the head, hence a tied embedding too.
    """

    metrics = (Metric("kept", "1", "same", "norm of the whole gradient after this, relative to the norm before"),)

    @dataclass(frozen=True)
    class Options:
        ratio: Annotated[float, Field(gt=0, le=FLOAT32_MAX)] = 0.01
        """Largest norm of a unit's gradient, relative to that of its weights."""
        least_norm: Annotated[float, Field(gt=0, le=FLOAT32_MAX)] = 1e-3
        """Norm that a unit's weights have at least."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.excluded: set[int] = set()
        self.by_column: set[int] = set()
        """Parameters by id."""

    def attach(self, model: Any, optimizer: Optimizer) -> Sequence[RemovableHandle]:
        from transformers.pytorch_utils import Conv1D

        self.excluded = {id(p) for p in model.lm_head.parameters()}
        self.by_column = {id(stored_weight(m)) for m in model.modules() if isinstance(m, Conv1D)}
        return ()

    @torch.no_grad()
    def on_tensors(self, seen: Seen) -> dict[str, Tensor]:
        norms_P = seen.parameter_norm_P.unbind(), seen.gradient_norm_P.unbind()
        for parameter, whole_weight, whole_gradient in zip(seen.parameters, *norms_P, strict=True):
            if parameter.grad is None or id(parameter) in self.excluded:
                continue
            matrix = parameter.dim() > 1
            weight = self._norms(parameter, parameter) if matrix else whole_weight
            gradient = self._norms(parameter, parameter.grad) if matrix else whole_gradient
            limit = self.options.ratio * weight.clamp(min=self.options.least_norm)
            local(parameter.grad).mul_(torch.where(gradient > limit, limit / gradient, 1.0))
        after = total_norm(tensor_norms([p.grad for p in seen.parameters if p.grad is not None]))
        return {"kept": torch.where(seen.gradient_norm > 0, after / seen.gradient_norm, 1.0)}

    def _norms(self, parameter: Tensor, tensor: Tensor) -> Tensor:
        """Norms of the units of a matrix, so shaped that they divide this rank's part of it: shards are of whole rows."""
        if id(parameter) in self.by_column:
            return full(torch.linalg.vector_norm(tensor, dim=0, keepdim=True))
        return torch.linalg.vector_norm(local(tensor).flatten(1), dim=1).reshape(-1, *[1] * (tensor.dim() - 1))

"""A penalty on the mean output embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from common.section import FLOAT32_MAX
from record.metrics import Metric

from .base import INTERVENTIONS, Intervention, Seen
from .output_rows import OutputRows


@INTERVENTIONS.register("mu_loss")
class MuLoss(Intervention):
    """Adds weight * ||mean output embedding||^2 to the loss of a step (mu-loss, arXiv 2601.02031).

    Its exact gradient, 2 weight mean / V in each row, is added to that of the output embedding after the backward pass, and is
    clipped with the rest; the value is not part of ``loss/objective``, and ``grad_norm`` is measured before. Padding of the
    vocabulary is left out.
    """

    metrics = (Metric("mean_norm", "1", "same", "L2 norm of the mean output embedding before the update", "norm"),)

    @dataclass(frozen=True)
    class Options:
        weight: Annotated[float, Field(ge=0, le=FLOAT32_MAX)] = 1e-4
        """Coefficient of the squared norm."""

    def attach(self, model: Any, optimizer: Optimizer) -> Sequence[RemovableHandle]:
        self.rows = OutputRows(model.lm_head)
        self.classes = model.lm_head.n_classes
        return ()

    @torch.no_grad()
    def on_tensors(self, seen: Seen) -> Mapping[str, Tensor]:
        mean_D = self.rows.mean()
        gradient = self.rows.weight.grad
        assert gradient is not None
        rows_RD = self.rows.of(gradient)
        rows_RD.add_((2 * self.options.weight / self.classes * mean_D).to(rows_RD.dtype))
        return {"mean_norm": torch.linalg.vector_norm(mean_D)}

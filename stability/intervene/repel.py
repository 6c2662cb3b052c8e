"""Repulsion: a penalty that keeps TFSD's target from softening until nothing is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from common.errors import InputError
from common.section import FLOAT32_MAX
from model.objectives import TokenLogits, softplus

from .base import INTERVENTIONS, Intervention


@INTERVENTIONS.register("repel")
class Repel(Intervention):
    """Adds -weight log Q_y = weight log(1 + S), S = sum_{k != y} exp(z_k), to the loss of each token: it pushes the hidden state
    and all wrong centroids apart, the nearest ones most, until S is small against 1. Then TFSD's c is no longer near 0.

    An anti-collapse term for metric heads, whose distances have an absolute scale: TFSD alone is 0 where all centroids meet the
    hidden state. It is a term of this project, not of the article.
    """

    @dataclass(frozen=True)
    class Options:
        weight: Annotated[float, Field(ge=0, le=FLOAT32_MAX)] = 0.1
        """Coefficient of log(1 + S), in nats for each nat."""

    def attach(self, model: Any, optimizer: Optimizer) -> Sequence[RemovableHandle]:
        if not model.lm_head.bounded:
            raise InputError(
                "interventions: repel needs a head with distances, whose logits end at 0; use head.kind=metric"
            )
        return ()

    def penalty(self, t: TokenLogits) -> Tensor:
        return self.options.weight * softplus(t.negatives)

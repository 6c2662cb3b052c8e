"""z-loss: a penalty on the log partition function, which softmax cross-entropy leaves free to drift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from common.section import FLOAT32_MAX
from model.objectives import TokenLogits, log_partition

from .base import INTERVENTIONS, Intervention


@INTERVENTIONS.register("z_loss")
class ZLoss(Intervention):
    """Adds weight * (log Z)^2 to the loss of each token (PaLM, arXiv 2204.02311; OLMo-core, nn/functional/cross_entropy_loss.py).

    Z sums exp(z_k) over the true vocabulary, in float32. The official loss belongs to cross-entropy; here it goes with any
    objective and stays out of the validation objective. ``gauge`` matters for heads with a constant per token only.
    """

    @dataclass(frozen=True)
    class Options:
        weight: Annotated[float, Field(ge=0, le=FLOAT32_MAX)] = 1e-4
        """Coefficient of (log Z)^2."""
        gauge: Literal["absolute", "relative"] = "absolute"
        """absolute: of the true logits; relative: without the constant that the head adds to all logits of a token (metric head:
        -g h.h), so that the length of the hidden states is not penalised by itself."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.penalty_shift_invariant = options.gauge == "relative" or options.weight == 0

    def penalty(self, t: TokenLogits) -> Tensor:
        log_z_N = log_partition(t)
        if self.options.gauge == "relative":
            log_z_N = log_z_N - t.shift
        return self.options.weight * log_z_N.square()

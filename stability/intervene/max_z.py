"""Max-z loss: a penalty on the largest logit of each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from common.section import FLOAT32_MAX
from model.objectives import TokenLogits

from .base import INTERVENTIONS, Intervention


@INTERVENTIONS.register("max_z")
class MaxZ(Intervention):
    """Adds weight * (largest logit)^2 to the loss of each token (Baichuan 2, arXiv 2309.10305; no official code was found).

    The gradient goes to one logit per token, the target's if that is the largest. In half precision it is rounded with the rest
    of the logits' gradient, and of logits so close that their probabilities round to the same number the first one gets it.
    """

    penalty_reads = ("largest",)

    @dataclass(frozen=True)
    class Options:
        weight: Annotated[float, Field(ge=0, le=FLOAT32_MAX)] = 2e-4
        """Coefficient of the square."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.penalty_shift_invariant = options.weight == 0

    def penalty(self, t: TokenLogits) -> Tensor:
        return self.options.weight * t.largest.square()

"""A stress that makes one element of the gradient infinite or not a number."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stability.stress.base import STRESSES, Stress


@STRESSES.register("broken_gradient")
class BrokenGradient(Stress):
    def gradients(self, step: int, gradients: Sequence[Tensor]) -> None:
        gradients[0].view(-1)[3] = torch.inf if step % 2 else torch.nan

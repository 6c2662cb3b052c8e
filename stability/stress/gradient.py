"""Stresses of the gradient."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from common.section import FLOAT32_MAX
from common.seeds import stream_seed

from .base import STRESSES, Stress, When
from .tensors import refuse_sharded


@STRESSES.register("gradient_noise")
class GradientNoise(Stress):
    """Adds Gaussian noise to the gradient, in proportion to the size of each tensor's."""

    @dataclass(frozen=True, kw_only=True)
    class Options(When):
        factor: Annotated[float, Field(gt=0, le=FLOAT32_MAX)]
        """Standard deviation of the noise in units of the root mean square of the tensor's gradient."""

    def check(self, model: nn.Module, optimizer: Optimizer) -> None:
        refuse_sharded(model, self)

    def gradients(self, step: int, gradients: Sequence[Tensor]) -> None:
        seed = stream_seed(self.place.seed, "stress", self.place.number, step)
        generator = torch.Generator(gradients[0].device).manual_seed(seed)
        for gradient in gradients:
            rms = gradient.norm() / math.sqrt(gradient.numel())
            gradient.add_(torch.empty_like(gradient).normal_(generator=generator).mul_(self.options.factor * rms))

    def describe(self, step: int, batch: int) -> str:
        return f"noise of {self.options.factor:g} times its RMS in every gradient"

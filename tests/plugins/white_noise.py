"""Gaussian noise of one size in every gradient, for a while."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.seeds import stream_seed
from stability.stress.base import STRESSES, Stress, When


@STRESSES.register("white_noise")
class WhiteNoise(Stress):
    @dataclass(frozen=True, kw_only=True)
    class Options(When):
        std: float

    def gradients(self, step: int, gradients: Sequence[Tensor]) -> None:
        generator = torch.Generator(gradients[0].device).manual_seed(stream_seed(self.place.seed, "white_noise", step))
        for gradient in gradients:
            gradient.add_(torch.empty_like(gradient).normal_(0, self.options.std, generator=generator))

    def describe(self, step: int, batch: int) -> str:
        return f"noise of {self.options.std:g} in every gradient"

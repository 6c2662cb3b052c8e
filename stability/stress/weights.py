"""Stresses of the parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from common.section import FLOAT32_MAX
from model.sigma_reparam import is_reparametrised

from .base import STRESSES, Stress, When
from .tensors import Pattern, local, names_matching


@STRESSES.register("scale_weights")
class ScaleWeights(Stress):
    """Multiplies some parameters, anew at each of its steps."""

    @dataclass(frozen=True, kw_only=True)
    class Options(When):
        parameters: Pattern
        """Regular expression: parameters in whose name it occurs, or whose group it matches (embedding, layer_00, ..., norm,
        head)."""
        factor: Annotated[float, Field(gt=-FLOAT32_MAX, lt=FLOAT32_MAX)]
        """Factor on each of their elements."""

    def check(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._names = names_matching(model, self.options.parameters, self, "parameters")
        if self.options.factor <= 0 and is_reparametrised(model):
            self.refuse(
                "factor", "must be above 0 with body.sigma_reparam, where W depends on s and on the direction of W~"
            )

    def state(self, step: int, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
        for name in self._names:
            local(parameters[name]).mul_(self.options.factor)

    def describe(self, step: int, batch: int) -> str:
        named = f"{self._names[0]} and {len(self._names) - 1} more" if len(self._names) > 1 else self._names[0]
        return f"{named} times {self.options.factor:g}"


@STRESSES.register("half_parameters")
class HalfParameters(Stress):
    """Rounds all parameters to bfloat16 before each of its steps, as training without a float32 copy of them does."""

    def state(self, step: int, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
        for parameter in map(local, parameters.values()):
            parameter.copy_(parameter.to(torch.bfloat16))

    def describe(self, step: int, batch: int) -> str:
        return "parameters rounded to bfloat16"

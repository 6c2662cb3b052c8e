"""Stresses of the learning rate."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from common.section import FLOAT32_MAX

from .base import STRESSES, Stress, When


@STRESSES.register("scale_lr")
class ScaleLearningRate(Stress):
    """Multiplies the learning rate."""

    @dataclass(frozen=True, kw_only=True)
    class Options(When):
        factor: Annotated[float, Field(gt=0, le=FLOAT32_MAX)]
        """Factor on the scheduled rate."""

    def rate(self, step: int) -> float:
        return float(self.options.factor)

    def describe(self, step: int, batch: int) -> str:
        return f"learning rate times {self.options.factor:g}"

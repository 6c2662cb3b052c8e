"""Learning-rate schedules: after warm-up, a factor of the peak rate that depends on the step alone."""

import math
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from common.registry import Registry

SCHEDULES = Registry("optimizer.schedule")


class Schedule:
    """The rate after warm-up as a factor of its peak."""

    @dataclass(frozen=True)
    class Options:
        """No options."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def factor(self, step: int, warmup_steps: int, steps: int) -> float:
        """The factor at ``step``, with ``warmup_steps`` < step <= ``steps``."""
        raise NotImplementedError


@SCHEDULES.register("cosine")
class Cosine(Schedule):
    """Cosine decay from the peak to ``min_ratio`` times the peak at the last step."""

    @dataclass(frozen=True)
    class Options:
        min_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
        """The last step's rate as a share of the peak."""

    def factor(self, step: int, warmup_steps: int, steps: int) -> float:
        progress = (step - warmup_steps) / (steps - warmup_steps)
        return _down_to(self.options.min_ratio, 0.5 * (1 + math.cos(math.pi * progress)))


@SCHEDULES.register("wsd")
class WarmupStableDecay(Schedule):
    """Constant, then linear decay to ``min_ratio`` times the peak over the last ``decay_fraction`` of the steps."""

    @dataclass(frozen=True)
    class Options:
        decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
        """Share of all steps over which the rate falls."""
        min_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
        """The last step's rate as a share of the peak."""

    def factor(self, step: int, warmup_steps: int, steps: int) -> float:
        left = (steps - step) / (self.options.decay_fraction * steps)
        return _down_to(self.options.min_ratio, min(1.0, left))


@SCHEDULES.register("constant")
class Constant(Schedule):
    """Constant at the peak."""

    def factor(self, step: int, warmup_steps: int, steps: int) -> float:
        return 1.0


def _down_to(least: float, factor: float) -> float:
    return least + (1 - least) * factor

"""The learning rate as a function of the step alone."""

from __future__ import annotations

import math

from configs.schema import Constant, Cosine, OptimizerConfig


def learning_rate(config: OptimizerConfig, steps: int, step: int) -> float:
    """Rate of ``step`` (from 1) of ``steps``: linear warm-up, then the schedule."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    schedule = config.schedule
    if isinstance(schedule, Constant):
        return config.lr
    if isinstance(schedule, Cosine):
        progress = (step - config.warmup_steps) / (steps - config.warmup_steps)
        factor = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        factor = min(1.0, (steps - step) / (schedule.decay_fraction * steps))
    return config.lr * (schedule.min_ratio + (1 - schedule.min_ratio) * factor)

"""Faults in the learning rate."""

from __future__ import annotations

from collections.abc import Sequence

from configs.schema import ScaleLearningRate, StressConfig

from .base import acts


def lr_factor(faults: Sequence[StressConfig], step: int) -> float:
    """What the faults multiply the learning rate of ``step`` by."""
    factor = 1.0
    for fault in faults:
        if isinstance(fault, ScaleLearningRate) and acts(fault, step):
            factor *= fault.factor
    return factor

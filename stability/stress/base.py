"""When a fault acts, and what it is called in words."""

from __future__ import annotations

from collections.abc import Sequence

from configs.schema import CorruptSequences, ScaleLearningRate, StressConfig


def acts(fault: StressConfig, step: int) -> bool:
    """Whether the fault acts at ``step``."""
    return fault.step <= step < fault.step + fault.steps


def describe_faults(faults: Sequence[StressConfig], step: int, batch: int) -> list[str]:
    """One line for each fault that acts at ``step``, which draws ``batch``."""
    found = []
    for fault in faults:
        if isinstance(fault, CorruptSequences) and acts(fault, batch):
            what = "without targets" if fault.pattern == "ignored" else f"replaced by {fault.pattern} tokens"
            found.append(f"{fault.sequences} sequences of batch {batch} {what}")
        if isinstance(fault, ScaleLearningRate) and acts(fault, step):
            found.append(f"learning rate times {fault.factor:g}")
    return found

"""Which step of a spike tells most about it."""

from __future__ import annotations

from collections.abc import Mapping

from record.metrics import kind_of

from .baseline import judged
from .events import Spike

STANDS_OUT = 5.0
"""Sigmas above the expected level at which a value of a spike stands out by itself, or half of the peak's if that is less."""


def telling_step(spike: Spike, values: Mapping[int, float]) -> int:
    """The first step at which the signal itself stands out. A spike's first step may be one of ordinary noise before it, where
    the evidence began to add up. ``values``: the signal by step; without that of the peak it is the spike's first step."""
    kind = kind_of(spike.signal)
    top = values.get(spike.peak_step)
    if top is None:
        return spike.start_step
    level, peak = judged(kind, top - spike.height), judged(kind, top)
    share = min(0.5, STANDS_OUT / spike.sigmas) if spike.sigmas > 0 else 0.5
    inside = range(spike.start_step, spike.peak_step + 1)
    far = (step for step in inside if judged(kind, values.get(step, float("nan"))) - level >= share * (peak - level))
    return next(far, spike.start_step)

"""The ends of intervals over seeds, as rules of judgement use them."""

from __future__ import annotations

import math

from analysis.compare.statistics import Effect


def low(effect: Effect) -> float:
    """The lower end; the mean if several seeds agree to the last digit; -inf of fewer than two, which say nothing of others."""
    if effect.low is not None:
        return effect.low
    return effect.mean if effect.n > 1 else -math.inf


def high(effect: Effect) -> float:
    """The upper end, likewise."""
    if effect.high is not None:
        return effect.high
    return effect.mean if effect.n > 1 else math.inf


def above(effect: Effect, value: float) -> bool:
    """Whether the whole interval is above ``value``."""
    return low(effect) > value


def below(effect: Effect, value: float) -> bool:
    """Whether the whole interval is below ``value``."""
    return high(effect) < value

"""Shapes of faults as real logs have them: heights at every step of the fault, of which the largest is 1."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from .cases import Floats, Random

Form = Literal["exponential", "triangular"]

FOOT = 0.1
"""Height at which a gradual spike begins and ends, and at which any decay is cut off."""
BLOOM_NORMS = (0.24, 0.95, 2.4, 15.9, 145.0, 960.0)
"""Gradient norms of BLOOM-176B before a spike of its loss, one a step; the first is the usual one."""
BLOOM_HEIGHT = math.log(BLOOM_NORMS[-1] / BLOOM_NORMS[0])
"""Of the peak, on a log scale."""
LAST_HALVES = 3
"""Steps after the peak of BLOOM's norms. These are not known; assumed is that each is half as high on the log scale."""


def gradual(rise: int, decay: int, form: Form) -> Floats:
    """From FOOT to the peak in ``rise`` steps, and back to FOOT in ``decay``: rise + 1 + decay heights."""
    share = np.concatenate([np.arange(rise) / rise, 1 - np.arange(decay + 1) / decay])
    return np.asarray(FOOT ** (1 - share) if form == "exponential" else FOOT + (1 - FOOT) * share)


def sharp_decay(time_constant: float) -> Floats:
    """The peak at once, then e times lower every ``time_constant`` steps, down to FOOT."""
    return np.exp(-np.arange(math.floor(-time_constant * math.log(FOOT)) + 1) / time_constant)


def late_rise(rise: int, stays: int) -> Floats:
    """In equal parts over ``rise`` steps to a level that stays for ``stays`` more."""
    return np.minimum(np.arange(1, rise + stays + 1) / rise, 1.0)


def bloom() -> Floats:
    """The norms of BLOOM-176B on a log scale: five steps up, the last of them the peak, and three down."""
    up = np.log(np.asarray(BLOOM_NORMS[1:]) / BLOOM_NORMS[0]) / BLOOM_HEIGHT
    return np.concatenate([up, 0.5 ** np.arange(1, LAST_HALVES + 1)])


def as_logged(heights: Floats, every: int, offset: int) -> Floats:
    """The heights at the logged steps: every ``every``-th, from ``offset`` on. Of 20 steps a log of every 20th has one."""
    return heights[offset::every]


def spike(random: Random, kind: str) -> Floats:
    """Heights of a spike of this kind, of random lengths."""
    if kind == "gradual":
        form: Form = "exponential" if random.random() < 0.5 else "triangular"
        return gradual(int(random.integers(5, 26)), int(random.integers(5, 41)), form)
    return sharp_decay(random.uniform(2, 20)) if kind == "sharp decay" else bloom()

"""Whether a loss is still falling at its end."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

from analysis.show.style import Floats

PART = 0.1
"""The share of the values that the last stretch has, and the one before it."""
FEWEST = 8
"""Fewest values of a stretch, which must be no more than a fifth of all."""
SURE = 3.0
"""Standard errors by which the means of the two stretches must differ."""


class Trend(NamedTuple):
    """How the last stretch of a series lies to the one before it."""

    word: Literal["falling", "rising", "level", "unknown"]
    change: float
    """Mean of the last stretch minus that of the one before; NaN where it is unknown."""
    values: int
    """Of a stretch."""
    above: float = 0.0
    """How far the last stretch lies above the lowest of those before it, as long and side by side; 0 if it may be noise."""


def trend(values: Floats) -> Trend:
    """The trend of a series by the means of its last two stretches, of a tenth of the values each. Falling or rising is what
    exceeds three standard errors, the values taken for independent; unknown, if there are too few or one is not finite."""
    count = max(int(PART * len(values)), FEWEST)
    before, last = values[len(values) - 2 * count : len(values) - count], values[len(values) - count :]
    if 5 * count > len(values) or not (np.isfinite(before).all() and np.isfinite(last).all()):
        return Trend("unknown", math.nan, count)
    change = float(last.mean() - before.mean())
    error = math.sqrt((before.var(ddof=1) + last.var(ddof=1)) / count)
    above = _above(values[len(values) % count :].reshape(-1, count))
    if abs(change) <= SURE * error:
        return Trend("level", change, count, above)
    return Trend("falling" if change < 0 else "rising", change, count, above)


def _above(stretches: Floats) -> float:
    """The last mean minus the lowest, of the stretches that are finite; 0 unless that exceeds three standard errors."""
    known = stretches[np.isfinite(stretches).all(axis=1)]
    mean, variance = known.mean(axis=1), known.var(axis=1, ddof=1)
    lowest = int(mean.argmin())
    above = float(mean[-1] - mean[lowest])
    error = math.sqrt((variance[-1] + variance[lowest]) / stretches.shape[1])
    return above if above > SURE * error else 0.0

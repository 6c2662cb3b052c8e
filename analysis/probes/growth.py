"""How fast a quantity grows over training: b of value ~ tokens^b, over the checkpoints of each run.

Through two checkpoints a line always passes, so there must be three or more.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.compare.statistics import Effect, Floats, mean_over_seeds

FEWEST = 3
"""Fewest checkpoints of a run, at different tokens, from which it has a rate."""


class Growth(NamedTuple):
    """How one arm's runs grow."""

    rate: Effect | None
    """The mean of their exponents over seeds; None if no run has checkpoints enough."""
    checkpoints: list[int]
    """For each run, how many are counted."""


def exponent(tokens: Floats, values: Floats) -> tuple[float, int]:
    """The least-squares slope of ln value over ln tokens where both are positive, and at how many different tokens that is; NaN
    for fewer than FEWEST."""
    known = np.isfinite(tokens) & np.isfinite(values)
    known[known] = (tokens[known] > 0) & (values[known] > 0)
    x, y = np.log(tokens[known]), np.log(values[known])
    count = len(np.unique(x))
    if count < FEWEST:
        return math.nan, count
    x = x - x.mean()
    return float(x @ y / (x @ x)), count


def growth(rows: pd.DataFrame) -> Growth:
    """Of one arm's rows of one measure."""
    found = [
        exponent(run["tokens"].to_numpy(np.float64, na_value=math.nan), run["value"].to_numpy(np.float64))
        for _, run in rows.groupby("run", sort=False)
    ]
    rates = [rate for rate, _ in found]
    return Growth(mean_over_seeds(rates) if np.isfinite(rates).any() else None, [count for _, count in found])

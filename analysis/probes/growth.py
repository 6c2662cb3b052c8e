"""How fast a quantity grows over training: b of value ~ tokens^b, over the checkpoints of each run."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from analysis.compare.statistics import Effect, Floats, mean_over_seeds


def exponent(tokens: Floats, values: Floats) -> float:
    """The least-squares slope of ln value over ln tokens, where both are positive; NaN from fewer than two such places."""
    known = np.isfinite(tokens) & np.isfinite(values)
    known[known] = (tokens[known] > 0) & (values[known] > 0)
    x, y = np.log(tokens[known]), np.log(values[known])
    if len(np.unique(x)) < 2:
        return math.nan
    x = x - x.mean()
    return float(x @ y / (x @ x))


def growth(rows: pd.DataFrame) -> Effect | None:
    """Of one arm's rows of one measure: the mean of its runs' exponents over seeds; None if no run has two checkpoints."""
    found = [
        exponent(run["tokens"].to_numpy(np.float64, na_value=math.nan), run["value"].to_numpy(np.float64))
        for _, run in rows.groupby("run", sort=False)
    ]
    return mean_over_seeds(found) if np.isfinite(found).any() else None

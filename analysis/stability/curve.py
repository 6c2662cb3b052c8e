"""What one curve of the NLL says of instabilities: its noise, its excess, and how long it takes to recover.

Pure functions. Shapes: S steps, W values of a window, R repetitions, E events. NLLs in nats per token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int64]

SMOOTHED = 5
"""Values of the moving median, which is the lightly smoothed curve."""
LEVEL = 16
"""Values before a spike whose median is the level from which it began."""
BACK = 1.0
"""Noise of a single value within which the smoothed curve is back at that level."""
REPEATED = 32
"""Curves of noise alone from which the noise floor is the mean."""
_MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True)
class Recovery:
    """How long one spike lasted."""

    start: int
    """Its first step."""
    steps: int
    """From there until the curve was back, or until the end."""
    back: bool
    """False: the run ended first, so that it would have taken longer (it is censored)."""


def noise(nll_S: Floats) -> float:
    """Standard deviation of one value, from the median absolute difference of neighbours: neither trend nor spikes matter."""
    steps = np.diff(nll_S[np.isfinite(nll_S)])
    if len(steps) < 2:
        return 0.0
    return float(_MAD_TO_SIGMA * np.median(np.abs(steps - np.median(steps))) / math.sqrt(2))


def moving_median(values: Floats) -> Floats:
    """The median over the last axis of each value and its neighbours, SMOOTHED in all and fewer at the ends."""
    columns = pd.DataFrame(np.atleast_2d(values).T)
    medians: Floats = columns.rolling(SMOOTHED, center=True, min_periods=1).median().to_numpy().T
    return medians.reshape(values.shape)


def capped(steps: Steps, nll: Floats, last: int, initial: float) -> tuple[Steps, Floats]:
    """The curve up to the step ``last``, with ``initial`` where it is not finite or the run had ended."""
    missing = np.arange(steps[-1] + 1 if len(steps) else 1, last + 1)
    filled = np.where(np.isfinite(nll), nll, initial)
    return np.concatenate([steps, missing]), np.concatenate([filled, np.full(len(missing), initial)])


def excess(nll_S: Floats) -> Floats:
    """(S,) the smoothed curve minus its running minimum: 0 wherever it is at its lowest so far."""
    smooth_S = moving_median(nll_S)
    above: Floats = smooth_S - np.minimum.accumulate(smooth_S, axis=-1)
    return above


def noise_floor(nll_S: Floats, sigma: float) -> Floats:
    """(S,) the excess that a curve without any instability would have: the mean over curves that follow the running minimum of
    this one, with independent normal noise of standard deviation ``sigma``."""
    trend_S = np.minimum.accumulate(moving_median(nll_S))
    noise_RS = np.random.default_rng(0).normal(scale=sigma, size=(REPEATED, len(nll_S)))
    floor: Floats = excess(trend_S + noise_RS).mean(axis=0)
    return floor


def recoveries(steps: Steps, nll: Floats, spikes: Sequence[tuple[int, int]], sigma: float, last: int) -> list[Recovery]:
    """How long each spike lasted, of which ``spikes`` holds first step and peak.

    From its first step until, at the peak or later, the smoothed curve is at most BACK ``sigma`` above the median of the LEVEL
    values before the spike; at least to the step after the peak. ``last``: the last step that there could have been.
    """
    smooth_S = moving_median(nll)
    found = []
    for start, peak in spikes:
        before = nll[steps < start][-LEVEL:]
        level = float(np.median(before)) if len(before) else math.inf
        back = np.flatnonzero((steps >= peak) & (smooth_S <= level + BACK * sigma))
        end = max(int(steps[back[0]]), peak + 1) if len(back) else last + 1
        found.append(Recovery(start, end - start, bool(len(back))))
    return found


def steps_within(recovered: Sequence[Recovery]) -> int:
    """The steps that lie in any of these spikes, each counted once."""
    return len({step for one in recovered for step in range(one.start, one.start + one.steps)})


def survival(duration_E: Sequence[float], seen_E: Sequence[bool]) -> tuple[Floats, Floats]:
    """Kaplan and Meier's estimate: the ascending times at which something ended, and the share that lasts longer than each.

    ``seen_E``: whether the end was seen; otherwise the duration is censored: the end would have come later.
    """
    from scipy.stats import CensoredData, ecdf

    durations, seen = np.asarray(duration_E, dtype=np.float64), np.asarray(seen_E, dtype=bool)
    if not seen.any():
        return np.array([]), np.array([])
    longer = ecdf(CensoredData(uncensored=durations[seen], right=durations[~seen])).sf
    ends = np.isin(longer.quantiles, durations[seen])
    return longer.quantiles[ends], longer.probabilities[ends]


def median_duration(duration_E: Sequence[float], seen_E: Sequence[bool]) -> float:
    """The median by :func:`survival`; infinite if more than half last longer than could be seen, NaN if there are none."""
    if not len(duration_E):
        return math.nan
    times, share = survival(duration_E, seen_E)
    half = np.flatnonzero(share <= 0.5)
    return float(times[half[0]]) if len(half) else math.inf

"""The expected value of a signal given its past, and the noise around it."""

import math
from functools import cache

import numpy as np
import numpy.typing as npt

from record.metrics import SignalKind

Floats = npt.NDArray[np.float64]
LINE = 32
"""Most values the line is fitted to."""
FEWEST = 8
"""Values before the first forecast, and forecasts before the first verdict: the rule speaks from the 17th value on."""
HISTORY = 128
"""Values kept. The expected level is not below their median either: the return from a dip is no spike."""
HISTORY_FROM = 64
"""Values from which on that median counts."""
LOWEST = 16
"""The expected level is not below the lowest of this many last values."""
ERRORS = 256
"""Forecast errors kept. Noise is estimated from the newer half, at least MINIMUM_ERRORS: early in a run it changes fast."""
MINIMUM_ERRORS = 16
REFIT = 4
"""Values after which the line and the noise are estimated anew once there are ERRORS errors; before, after every value."""
CLIP = 3.0
"""MAD sigmas at which errors are clipped before their standard deviation is taken."""
MAD_TO_SIGMA = 1.4826
"""Standard deviation of normal noise in units of its median absolute deviation."""
SMALL_SAMPLE = 2.0
"""Sigma estimated from n errors is enlarged by the factor 1 + 2/n."""
RESOLUTION = 1e-3
"""Sigma is at least this share of the level, so that a noiseless signal does not spike at its last digits."""
HUGE = 1e150
"""Values beyond it are as good as infinite: the squares of what is below have a sum."""
TINY = 1e-12
"""Least sigma, for a signal that has been exactly 0."""


def judged(kind: SignalKind, value: float) -> float:
    """``value`` on the scale on which signals of its kind are judged; NaN if it is not finite, too large to be reckoned
    with, or has no logarithm."""
    if not abs(value) <= HUGE or (kind == "norm" and value <= 0):
        return math.nan
    return math.log(value) if kind == "norm" else value


def resolution(kind: SignalKind, level: float, share: float) -> float:
    """``share`` of a level, in the unit in which signals of its kind are judged."""
    return share * (1.0 if kind == "norm" else abs(level))


def median(values: Floats) -> float:
    """The median of at least one value; on short arrays several times faster than np.median."""
    half = len(values) // 2
    if len(values) % 2:
        return float(np.partition(values, half)[half])
    parted = np.partition(values, half)
    return float(parted[:half].max() + parted[half]) / 2


def spacing(values_nk: Floats) -> Floats:
    """The smallest difference other than 0 between any two values of each row, 0 if there is none: of rounded values one unit
    of the last digit, whose rounding alone has a standard deviation of 1/sqrt(12) of it."""
    gaps = np.diff(np.sort(values_nk, axis=1), axis=1)
    smallest = np.where(gaps > 0, gaps, np.inf).min(axis=1)
    return np.where(np.isfinite(smallest), smallest, 0.0)


class Baseline:
    """The history of a series and its expected value (points 1 and 2 of the rule). Attributes are JSON values.

    ``falling``: the line never rises, as it would follow a spike that takes tens of values to rise. That a norm grows slowly
    is a bias that the errors show.
    """

    def __init__(self, falling: bool = False) -> None:
        self.falling = falling
        self.accepted = 0
        """Values so far."""
        self.steps: list[int] = []
        self.values: list[float] = []
        self.errors: list[float] = []
        self.line: list[float] = []
        """Intercept and slope over log(1 + step), once there are enough values."""
        self.noise: list[float] = []
        """Median of the errors and their standard deviation, once there are enough of them."""
        self.usual: list[float] = []
        """Intercept and slope of the median of the whole history, once it counts."""

    def accept(self, step: int, value: float) -> None:
        """Add a value to the history."""
        if self.line:
            self.errors = [*self.errors[1 - ERRORS :], value - _at(self.line, step)]
        self.steps = [*self.steps[1 - HISTORY :], step]
        self.values = [*self.values[1 - HISTORY :], value]
        self.accepted += 1
        if len(self.values) >= FEWEST and (len(self.errors) < ERRORS or self.accepted % REFIT == 0):
            self._estimate()

    def expected(self, step: int) -> tuple[float, float] | None:
        """Expected level at ``step`` and standard deviation of the noise around it; None while it is too early."""
        if not self.noise:
            return None
        bias, sigma = self.noise
        level = max(_at(self.line, step) + bias, min(self.values[-LOWEST:]))
        return max(level, _at(self.usual, step)) if self.usual else level, sigma

    def _estimate(self) -> None:
        """Line, noise and usual level from the history."""
        time, values = np.log1p(np.asarray(self.steps, dtype=np.float64)), np.asarray(self.values)
        recent = values[-LINE:]
        self.line = self._line(time[-LINE:], recent)
        if len(self.errors) < FEWEST:
            return
        errors = np.asarray(self.errors[-max(MINIMUM_ERRORS, len(self.errors) // 2) :])
        bias = median(errors)
        distance = np.abs(errors - bias)
        last_digit = float(spacing(recent[None])[0])
        mad = max(MAD_TO_SIGMA * median(distance), last_digit)  # where most errors are 0, the others are no outliers
        clipped = np.minimum(distance, CLIP * mad)
        sigma = max(math.sqrt(float(np.mean(clipped * clipped))), last_digit / math.sqrt(12))
        self.noise = [bias, sigma * (1 + SMALL_SAMPLE / len(errors))]
        if len(values) >= HISTORY_FROM:
            self.usual = self._median(time, values)

    def _line(self, time: Floats, values: Floats) -> list[float]:
        earlier, later = _pairs(len(values))
        slope = median((values[later] - values[earlier]) / (time[later] - time[earlier]))
        if self.falling:
            slope = min(slope, 0.0)
        return [median(values - slope * time), slope]

    def _median(self, time: Floats, values: Floats) -> list[float]:
        half = len(values) // 2
        slope = (median(values[half:]) - median(values[:half])) / (median(time[half:]) - median(time[:half]))
        if self.falling:
            slope = min(slope, 0.0)
        return [median(values - slope * time), slope]


def _at(line: list[float], step: int) -> float:
    intercept, slope = line
    return intercept + slope * math.log1p(step)


@cache
def _pairs(count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    earlier, later = np.triu_indices(count, 1)
    return earlier, later

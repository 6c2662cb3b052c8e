"""The expected value of a signal given its past: a robust line, and the noise around it."""

import math
from functools import cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
LINE = 32
"""Most values the line is fitted to."""
FEWEST = 8
"""Values before the first forecast, and forecasts before the first verdict: the rule speaks from the 17th value on."""
ERRORS = 256
"""Forecast errors kept. Noise is estimated from the newer half, at least MINIMUM_ERRORS: early in a run it changes fast."""
MINIMUM_ERRORS = 16
LOWEST = 16
"""The expected level is not below the lowest of this many last values."""
CLIP = 3.0
"""MAD sigmas at which errors are clipped before their standard deviation is taken."""
MAD_TO_SIGMA = 1.4826
"""Standard deviation of normal noise in units of its median absolute deviation."""
SMALL_SAMPLE = 2.0
"""Sigma estimated from n errors is enlarged by the factor 1 + 2/n."""
RESOLUTION = 1e-3
"""Sigma is at least this share of the level, so that a noiseless signal does not spike at its last digits."""
TINY = 1e-12
"""Least sigma, for a signal that has been exactly 0."""


def logarithmic(signal: str) -> bool:
    """Whether the signal is judged on a log scale: norms and update sizes."""
    return "norm" in signal or "rms" in signal


def judged(signal: str, value: float) -> float:
    """``value`` on the scale on which its signal is judged; NaN if it is not finite or has no logarithm."""
    if not math.isfinite(value) or (logarithmic(signal) and value <= 0):
        return math.nan
    return math.log(value) if logarithmic(signal) else value


def resolution(signal: str, level: float, share: float) -> float:
    """``share`` of a level, in the unit in which its signal is judged."""
    return share * (1.0 if logarithmic(signal) else abs(level))


def falls(signal: str) -> bool:
    """Whether training should lower the signal, so that a rise is suspect. (TFSD's objective rises after a cold start.)"""
    return ("loss" in signal or "nll" in signal) and signal != "loss/objective"


def median(values: Floats) -> float:
    """The median of at least one value; on short arrays several times faster than np.median."""
    half = len(values) // 2
    if len(values) % 2:
        return float(np.partition(values, half)[half])
    parted = np.partition(values, half)
    return float(parted[:half].max() + parted[half]) / 2


class Baseline:
    """The history of a series and its expected value (points 1 and 2 of the rule). Attributes are JSON values.

    ``falling``: the line never rises, as training should lower the signal; otherwise it would follow a gradual spike.
    """

    def __init__(self, falling: bool = False) -> None:
        self.falling = falling
        self.steps: list[int] = []
        self.values: list[float] = []
        self.errors: list[float] = []
        self.line: list[float] = []
        """Intercept and slope over log(1 + step), once there are enough values."""

    def accept(self, step: int, value: float) -> None:
        """Add a value to the history."""
        if self.line:
            self.errors = [*self.errors[1 - ERRORS :], value - self._forecast(step)]
        self.steps = [*self.steps[1 - LINE :], step]
        self.values = [*self.values[1 - LINE :], value]
        if len(self.values) >= FEWEST:
            self.line = self._fit()

    def expected(self, step: int) -> tuple[float, float] | None:
        """Expected level at ``step`` and standard deviation of the noise around it; None while it is too early."""
        if len(self.errors) < FEWEST:
            return None
        errors = np.asarray(self.errors[-max(MINIMUM_ERRORS, len(self.errors) // 2) :])
        bias = median(errors)
        distance = np.abs(errors - bias)
        mad = MAD_TO_SIGMA * median(distance)
        clipped = np.minimum(distance, CLIP * mad)
        sigma = math.sqrt(float(np.mean(clipped * clipped)))
        level = max(self._forecast(step) + bias, min(self.values[-LOWEST:]))
        return level, sigma * (1 + SMALL_SAMPLE / len(errors))

    def _forecast(self, step: int) -> float:
        intercept, slope = self.line
        return intercept + slope * math.log1p(step)

    def _fit(self) -> list[float]:
        time, values = np.log1p(np.asarray(self.steps, dtype=np.float64)), np.asarray(self.values)
        earlier, later = _pairs(len(values))
        slope = median((values[later] - values[earlier]) / (time[later] - time[earlier]))
        if self.falling:
            slope = min(slope, 0.0)
        return [median(values - slope * time), slope]


@cache
def _pairs(count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    earlier, later = np.triu_indices(count, 1)
    return earlier, later

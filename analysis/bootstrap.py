"""A mean with a bootstrap interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 9999
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` independent units with its 95% interval; the bounds are None if ``n`` is below 2."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def format(self, form: str) -> str:
        """The mean and, in brackets, the interval, each number in ``form``."""
        mean = format(self.mean, form)
        return mean if self.low is None else f"{mean} [{format(self.low, form)}, {format(self.high, form)}]"


def estimate_mean(values: npt.NDArray[np.float64], seed: int) -> Estimate:
    """The mean of ``values`` and its BCa bootstrap interval (Efron 1987), with a generator of its own from ``seed``."""
    from scipy.stats import bootstrap

    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, None, None, len(values))
    if np.ptp(values) == 0:  # every resample has this mean, and the acceleration of BCa is 0/0
        return Estimate(mean, mean, mean, len(values))
    interval = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="BCa",
        batch=500,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), len(values))

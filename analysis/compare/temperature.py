"""Views of a model: its predictions as they are, at its best temperature, and at the baseline's entropy.

A flatter distribution gives every word but the likeliest more probability. Two models are therefore also compared when each is
at its own best temperature, and when both have the same mean entropy.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cache
from typing import ClassVar

import numpy as np

VIEWS = ("raw", "fitted", "matched")
VIEWS_OVER_TRAINING = ("raw", "fitted")
"""Without matched entropy: two runs need not have checkpoints of the same steps, and the baseline's entropy changes."""
MEANINGS = {
    "raw": "as it is",
    "fitted": "at the temperature at which it predicts held-out text best",
    "matched": "at the temperature at which its mean entropy is the baseline's",
}
"""On held-out text."""
MEANINGS_WITH_TRUTH = MEANINGS | {
    "fitted": "at the temperature with the lowest expected NLL on other documents",
    "matched": "at the temperature at which its mean entropy on those documents is the baseline's",
}
"""Where the true distributions are known."""

_STEP = math.log(2.0)  # of ln beta, beta = 1 / temperature
_STEPS = 6  # up to 64 and down to 1/64


class Calibration(ABC):
    """A predictor's distributions in a sample of contexts, at any temperature; natural logarithms."""

    precision: ClassVar[float]
    """Tolerance of ln beta, beta = 1 / temperature, in the temperatures that are found."""

    def temperatures(self, entropy: float | None) -> dict[str, float]:
        """The temperature of each view. ``entropy`` is the baseline's, in nats; None for the baseline itself."""
        matched = 1.0 if entropy is None else self.matching(entropy)
        return {"raw": 1.0, "fitted": self.best(), "matched": matched}

    def best(self) -> float:
        """The temperature with the lowest mean NLL; at most 64 and at least 1/64."""
        return _solve(lambda beta: self.means(beta)[0], rising=True, precision=self.precision)[0]

    def matching(self, entropy: float) -> float:
        """The temperature with this mean entropy in nats; NaN if there is none from 1/64 to 64, exactly 1 for its own."""
        temperature, found = _solve(lambda beta: self.means(beta)[1] - entropy, rising=False, precision=self.precision)
        return temperature if found else math.nan

    def entropy(self, temperature: float = 1.0) -> float:
        """Mean entropy at a temperature, nats."""
        return self.means(1 / temperature)[1]

    def nll(self, temperature: float = 1.0) -> float:
        """Mean negative log-likelihood of the sample at a temperature, nats per token; NaN at a temperature of NaN."""
        return self.means(1 / temperature)[2]

    @abstractmethod
    def means(self, beta: float) -> tuple[float, float, float]:
        """Means over the sample at beta = 1 / temperature: the slope of the NLL in beta, which rises; the entropy; the NLL."""


def matched_entropy(entropies: Mapping[int | None, float], seed: int | None) -> float:
    """Of the baseline's mean entropies by seed the one of ``seed``, or the mean of all if there is none."""
    return entropies[seed] if seed in entropies else float(np.mean(list(entropies.values())))


def _solve(function: Callable[[float], float], *, rising: bool, precision: float) -> tuple[float, bool]:
    """The temperature at which a monotone function of beta is zero, and True; else the end of the range nearest to that, and
    False. The range is searched outwards from a temperature of 1, which is near most solutions."""
    from scipy.optimize import brentq

    @cache
    def at(log_beta: float) -> float:
        return function(math.exp(log_beta))

    if at(0.0) == 0:
        return 1.0, True
    step = -_STEP if (at(0.0) > 0) == rising else _STEP
    for number in range(_STEPS):
        near, far = number * step, (number + 1) * step
        if at(near) * at(far) <= 0:
            return math.exp(-brentq(at, near, far, xtol=precision)), True
    return math.exp(-_STEPS * step), False

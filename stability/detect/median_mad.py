"""Spike detection: the default rule, and every rule by name.

The rule (docs/mathematics.md, section 4) asks of each value how many sigmas of the noise it lies above what the values before it
lead one to expect, and of the last few values together whether that can be chance:

1. *Expected*: the straight line in log(1 + step) through the last 32 values by the median of all pairwise slopes (Theil-Sen),
   plus the median of the last errors of such forecasts. Never below the lowest of the last 4 values: a curve that stops
   falling is no spike.
2. *Noise*: the standard deviation of those errors with each clipped at 3 x 1.4826 x MAD. Forecast errors, not residuals: what a
   bend of the curve or autocorrelated noise adds to them is in the scale that they are judged by.
3. *Evidence*: a sum that each value adds its sigmas minus 2.5 to, at most 3 a value, never below 0 (a one-sided CUSUM; Page
   1954). Two values in a row of a little more than 4 sigmas open a spike. One value alone does if it is 2.5 times as far
   out as any of the last 256 errors, in either direction, and at least 8 sigmas; 20 are enough in any case. Where the noise
   has heavy tails, its outliers themselves ask for more.
4. *Frozen history*: from the first value that adds evidence until it is used up, or the spike is over, no value enters the
   history. A spike is over when two values in a row are back: one value is noise, at the end as at the start. It is closed as
   not recovered, and its level is the new history, when 200 values have brought no new peak.
5. *Creep*: a loss is not expected to rise. When the median of its last 32 values is 6 sigmas above the lowest such median,
   that is one spike from there on. (A line would follow any rise that is slow enough.)

Norms and update sizes are judged by their logarithm, and may rise: the noise of a gradient norm is multiplicative. In the runs of
configs/suites/scale.yaml its excursions of one step reach 4 to 12 standard deviations as they are, 3 to 10 on a log scale.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .base import DETECTORS, Detector
from .baseline import LINE, RESOLUTION, TINY, Baseline, falls, judged, logarithmic, median, resolution
from .events import Event

REFERENCE = 2.5
"""Sigmas that count neither for nor against a spike."""
MOST = 3.0
"""The most that one value adds to the evidence."""
DECISION = 3.0
"""A spike opens when the evidence is greater."""
ALONE = 20.0
"""Sigmas at which one value is a spike by itself, whatever the noise."""
ALONE_LEAST = 8.0
"""The same at least, where the noise has shown no outliers in NOISE_KNOWN errors."""
ALONE_FACTOR = 2.5
"""Times the farthest error on record."""
NOISE_KNOWN = 64
LONGEST = 200
"""Values without a new peak after which a spike is closed as not recovered."""
CREEP = 6.0
"""Sigmas by which the median of the last LINE values of a loss may exceed its lowest."""


@DETECTORS.register("median_mad")
class MedianMad(Detector):
    """The rule of this module. A spike is a rise. Where the logarithm is judged, values without one are passed over."""

    def __init__(self, signal: str) -> None:
        super().__init__(signal)
        self.baseline = Baseline()
        self.evidence = 0.0
        self.held: list[list[Any]] = []
        """Step, value, height and sigmas of the values that have added evidence, while no spike is open."""
        self.inside: list[list[Any]] = []
        """Step and value of the last values since the spike opened."""
        self.back = self.since_peak = 0
        """Values in a row that are back at the level expected; values since the peak."""
        self.lowest: list[Any] = []
        """The lowest level of a loss so far, and its step."""
        self.creep: float | None = None
        """The level expected while the open spike is a creep."""

    def take(self, step: int, value: float) -> list[Event]:
        raw, value = value, judged(self.signal, value)
        if math.isnan(value):
            return []
        expected = self.baseline.expected(step)
        if expected is None:
            self.baseline.accept(step, value)
            return []
        level, sigma = expected
        level = level if self.creep is None else self.creep
        sigma = max(sigma, resolution(self.signal, level, RESOLUTION), TINY)
        height = raw - (math.exp(level) if logarithmic(self.signal) else level)
        candidate = [step, value, height, (value - level) / sigma]
        if self.open is not None:
            return self._inside(candidate)
        self._outside(candidate, sigma)
        if falls(self.signal) and not self.held:
            self._watch_level(step, sigma)
        return []

    def _outside(self, candidate: list[Any], sigma: float) -> None:
        """No spike is open: weigh the evidence of the new value."""
        sigmas = candidate[3]
        self.held.append(candidate)
        self.evidence = max(0.0, self.evidence + min(sigmas - REFERENCE, MOST))
        if self.evidence > DECISION or self._stands_alone(sigmas, sigma):
            for held in self.held:
                self._grow(held)
            self.evidence, self.held = 0.0, []
        elif self.evidence == 0.0:
            for step, value, *_ in self.held:
                self.baseline.accept(step, value)
            self.held = []

    def _stands_alone(self, sigmas: float, sigma: float) -> bool:
        """Whether one value, so many ``sigmas`` up, is too far out for the noise there has been."""
        errors = np.asarray(self.baseline.errors)
        if sigmas <= ALONE_LEAST or len(errors) < NOISE_KNOWN:
            return sigmas > ALONE
        farthest = float(np.abs(errors - median(errors)).max())
        return sigmas > min(ALONE, ALONE_FACTOR * farthest / sigma)

    def _inside(self, candidate: list[Any]) -> list[Event]:
        """A spike is open: it goes on, or is over."""
        self.since_peak += 1
        if candidate[3] > REFERENCE:
            self.back = 0
            self._grow(candidate)
            return self._give_up() if self.since_peak >= LONGEST else []
        self.back += 1
        self.inside.append(candidate[:2])
        return self._end(self.inside[-2:], recovered=True) if self.back == 2 else []

    def _grow(self, candidate: list[Any]) -> None:
        step, value, height, sigmas = candidate
        self._extend(step, height, sigmas)
        if self.open is not None and self.open.peak_step == step:
            self.since_peak = 0
        self.inside = [*self.inside[1 - LINE :], [step, value]]

    def _give_up(self) -> list[Event]:
        """The spike's level has become the usual one: the history begins anew with it."""
        self.baseline, self.lowest = Baseline(), []
        return self._end(self.inside, recovered=False)

    def _end(self, accepted: list[list[Any]], recovered: bool) -> list[Event]:
        for step, value in accepted:
            self.baseline.accept(step, value)
        self.inside, self.back, self.creep = [], 0, None
        return self._close(recovered)

    def _watch_level(self, step: int, sigma: float) -> None:
        """Open a spike when the level of a loss has crept up."""
        if len(self.baseline.values) < LINE:
            return
        level = median(np.asarray(self.baseline.values))
        if not self.lowest or level <= self.lowest[0]:
            self.lowest = [level, step]
        elif level - self.lowest[0] > CREEP * sigma:
            self.creep, since = self.lowest
            self._grow([since + 1, self.baseline.values[-1], level - self.creep, (level - self.creep) / sigma])
            self._grow([step, self.baseline.values[-1], level - self.creep, (level - self.creep) / sigma])

    def suspected_since(self) -> int | None:
        return int(self.held[0][0]) if self.open is None and self.held else super().suspected_since()

    def state(self) -> dict[str, Any]:
        return super().state() | {"baseline": copy.deepcopy(vars(self.baseline))}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Detector:
        detector = super().from_state(state)
        assert isinstance(detector, MedianMad)
        detector.baseline = Baseline()
        vars(detector.baseline).update(copy.deepcopy(state["baseline"]))
        return detector

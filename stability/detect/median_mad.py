"""The default spike rule, derived in docs/mathematics.md, section 4.

A value's sigmas above a robust line through the last values add evidence in a one-sided CUSUM; a single value opens a spike
only far beyond all errors on record. The history is frozen while there is evidence or an open spike. Rises that take hundreds of
values are for another rule (level.py). Norms and update sizes are judged by their logarithm, since their noise is multiplicative.
"""

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
"""Most evidence from one value."""
DECISION = 3.0
"""Evidence above which a spike opens."""
ALONE = 20.0
"""Sigmas at which a single value is a spike, whatever the noise."""
ALONE_LEAST = 8.0
"""Least sigmas for that, if NOISE_KNOWN errors contain no outlier."""
ALONE_FACTOR = 2.5
"""Factor by which it must exceed the farthest error on record."""
NOISE_KNOWN = 64
LONGEST = 200
"""Values without a new peak after which a spike is closed as not recovered."""


@DETECTORS.register("median_mad")
class MedianMad(Detector):
    """The default: a CUSUM of sigmas above a robust line through the last values.

    A spike is a rise. On a log scale, values without a logarithm are skipped.
    """

    def __init__(self, signal: str) -> None:
        super().__init__(signal)
        self.baseline = Baseline(falls(signal))
        self.evidence = 0.0
        self.held: list[list[Any]] = []
        """Step, value, height and sigmas of the values that added evidence, while no spike is open."""
        self.inside: list[list[Any]] = []
        """Step and value of the last values since the spike opened."""
        self.back = self.since_peak = 0
        """Consecutive values back at the expected level; values since the peak."""

    def take(self, step: int, value: float) -> list[Event]:
        raw, value = value, judged(self.signal, value)
        if math.isnan(value):
            return []
        expected = self.baseline.expected(step)
        if expected is None:
            self.baseline.accept(step, value)
            return []
        level, sigma = expected
        sigma = max(sigma, resolution(self.signal, level, RESOLUTION), TINY)
        height = raw - (math.exp(level) if logarithmic(self.signal) else level)
        candidate = [step, value, height, (value - level) / sigma]
        if self.open is not None:
            return self._inside(candidate)
        self._outside(candidate, sigma)
        return []

    def _outside(self, candidate: list[Any], sigma: float) -> None:
        """Weigh the evidence of a value while no spike is open."""
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
        """Whether one value, ``sigmas`` up, is farther out than the noise explains."""
        errors = np.asarray(self.baseline.errors)
        if sigmas <= ALONE_LEAST or len(errors) < NOISE_KNOWN:
            return sigmas > ALONE
        farthest = float(np.abs(errors - median(errors)).max())
        return sigmas > min(ALONE, ALONE_FACTOR * farthest / sigma)

    def _inside(self, candidate: list[Any]) -> list[Event]:
        """Continue or close the open spike."""
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
        """The spike's level has become the usual one: start a new history there."""
        self.baseline = Baseline(falls(self.signal))
        return self._end(self.inside, recovered=False)

    def _end(self, accepted: list[list[Any]], recovered: bool) -> list[Event]:
        for step, value in accepted:
            self.baseline.accept(step, value)
        self.inside, self.back = [], 0
        return self._close(recovered)

    def suspected_since(self) -> int | None:
        return int(self.held[0][0]) if self.open is None and self.held else super().suspected_since()

    def state(self) -> dict[str, Any]:
        return super().state() | {"baseline": copy.deepcopy(vars(self.baseline))}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Detector:
        detector = super().from_state(state)
        assert isinstance(detector, MedianMad)
        detector.baseline = Baseline(falls(detector.signal))
        vars(detector.baseline).update(copy.deepcopy(state["baseline"]))
        return detector

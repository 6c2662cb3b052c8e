"""The default spike rule, derived in docs/mathematics.md, section 4.

A value's sigmas above a robust line through the last values add evidence in a one-sided CUSUM; a single value opens a spike
only far beyond all errors on record. The history is frozen while there is evidence or an open spike. Rises that take hundreds of
values are for another rule (level.py). Norms and update sizes are judged by their logarithm, since their noise is multiplicative.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from record.metrics import SignalKind

from .base import DETECTORS, Detector
from .baseline import LINE, RESOLUTION, TINY, Baseline, judged, median, resolution
from .events import Event, Spike
from .outliers import FAR, SIZES, Outliers

REFERENCE = 2.5
"""Sigmas that count neither for nor against a spike."""
MOST = 3.0
"""Most evidence from one value."""
DECISION = 3.0
"""Evidence above which a spike opens."""
UNIT = 1 / 1024
"""Slow evidence is counted in units, in sigmas, since a sum of integers does not depend on the order."""
SLOW_REFERENCE, SLOW_MOST, SLOW_DECISION = 1536, 1536, 4096
"""The same for losses that rise by little over tens of values. The history is not frozen for this evidence."""
ALONE = 20.0
"""Sigmas at which a single value is a spike, if values as far out are rare."""
ALONE_LEAST = 8.0
"""Least sigmas for that, if NOISE_KNOWN errors contain no outlier."""
ALONE_FACTOR = 2.5
"""Factor by which it must exceed the farthest error but one on record."""
TIMES, TIMES_SIGMAS = 2.0, 4.5
"""A norm of so many times the expected one is a spike by itself, if it is also so many sigmas above it."""
NOISE_KNOWN = 64
LONGEST = 200
"""Values without a new peak after which a spike is closed as not recovered."""


class Seen(NamedTuple):
    """A value and how far it is above the expected level: as it is, in sigmas, and on the scale on which it is judged."""

    step: int
    value: float
    """On the scale on which it is judged."""
    height: float
    sigmas: float
    above: float


@DETECTORS.register("median_mad")
class MedianMad(Detector):
    """The default: a CUSUM of sigmas above a robust line through the last values.

    A spike is a rise. On a log scale, values without a logarithm are skipped.
    """

    def __init__(self, signal: str, signal_kind: SignalKind | None = None) -> None:
        super().__init__(signal, signal_kind)
        self.baseline = Baseline(falling=self.signal_kind in ("loss", "norm"))
        self.outliers = Outliers()
        self.evidence = 0.0
        self.held: list[list[Any]] = []
        """Fields of the values that added evidence, while no spike is open."""
        self.slow = 0
        """Slow evidence, in UNITs."""
        self.slow_top: list[Any] = []
        """First step since it was last 0; fields of the value farthest above the level since then."""
        self.inside: list[list[Any]] = []
        """Step and value of the last values since the spike opened."""
        self.far: list[list[float]] = []
        """Sigmas and height of the first two outliers in the open spike."""
        self.back = self.since_peak = 0
        """Consecutive values back at the expected level; values since the peak."""

    def take(self, step: int, value: float) -> list[Event]:
        raw, value = value, judged(self.signal_kind, value)
        if math.isnan(value):
            return []
        self.outliers.pass_over(1)
        expected = self.baseline.expected(step)
        if expected is None:
            self.baseline.accept(step, value)
            return []
        level, sigma = expected
        sigma = max(sigma, resolution(self.signal_kind, level, RESOLUTION), TINY)
        height = raw - (math.exp(level) if self.signal_kind == "norm" else level)
        seen = Seen(step, value, height, (value - level) / sigma, value - level)
        if self.open is not None:
            return self._inside(seen)
        self._outside(seen, sigma)
        return []

    def _outside(self, seen: Seen, sigma: float) -> None:
        """Weigh the evidence of a value while no spike is open."""
        most = self.outliers.most_evidence(seen.sigmas, MOST)
        self.evidence = max(0.0, self.evidence + min(seen.sigmas - REFERENCE, most))
        self.held.append(list(seen))
        slowly = self.signal_kind == "loss" and self._slowly(seen, most)
        if slowly or self.evidence > DECISION or self._stands_alone(seen, sigma):
            self._open(seen.step, slowly)
        elif self.evidence == 0.0 or len(self.held) == LONGEST:  # a history frozen for long is none
            for held in self.held:
                self.baseline.accept(*held[:2])
                if self.signal_kind == "loss":
                    self.outliers.remember(*held[3:])
                    self.outliers.passed_over += held[3] >= FAR
            self.evidence, self.held = 0.0, []

    def _open(self, step: int, slowly: bool) -> None:
        """Open a spike at ``step``, from the first value on that added evidence."""
        values = [Seen(*held) for held in self.held]
        first = values[0].step
        if slowly:
            first, top = self.slow_top[0], Seen(*self.slow_top[1:])
            values = [top, *(seen for seen in values if seen.step > top.step)]
        self.open = Spike(self.kind, self.signal, first, step, first, first, 0.0, 0.0)
        for seen in values:
            self._grow(seen)
        self.evidence, self.held, self.slow, self.slow_top = 0.0, [], 0, []

    def _slowly(self, seen: Seen, most: float) -> bool:
        """Weigh the slow evidence of a value; returns whether it opens a spike."""
        units = slow_units(seen.sigmas)
        self.slow = max(0, self.slow + min(units, round(most / MOST * SLOW_MOST)))
        if not self.slow:
            self.slow_top = []
        elif not self.slow_top:
            self.slow_top = [seen.step, *seen]
        elif seen.height > self.slow_top[3]:
            self.slow_top[1:] = seen
        return self.slow > SLOW_DECISION

    def _stands_alone(self, seen: Seen, sigma: float) -> bool:
        """Whether one value is farther out than the noise explains."""
        errors = np.asarray(self.baseline.errors)
        if len(errors) < NOISE_KNOWN:
            return seen.sigmas > ALONE
        if self.signal_kind == "norm" and seen.above >= math.log(TIMES) and seen.sigmas > TIMES_SIGMAS:
            return True
        if seen.sigmas <= ALONE_LEAST:
            return False
        farthest = self.outliers.farthest_but_one(np.abs(errors - median(errors)))
        rare = self.outliers.most_evidence(seen.sigmas, MOST) == MOST
        return seen.sigmas > ALONE_FACTOR * farthest / sigma or (seen.sigmas > ALONE and rare)

    def _inside(self, seen: Seen) -> list[Event]:
        """Continue or close the open spike."""
        self.since_peak += 1
        if seen.sigmas > REFERENCE:
            self.back = 0
            self._grow(seen)
            return self._give_up() if self.since_peak >= LONGEST else []
        self.back += 1
        self.inside.append([seen.step, seen.value])
        if self.back < 2:
            return []
        if len(self.far) == 1 and self.signal_kind == "loss":
            self.outliers.remember(*self.far[0])
        return self._end(self.inside[-2:], recovered=True)

    def _grow(self, seen: Seen) -> None:
        self._extend(seen.step, seen.height, seen.sigmas)
        if self.open is not None and self.open.peak_step == seen.step:
            self.since_peak = 0
        if seen.sigmas >= SIZES[0]:
            self.far = [*self.far, [seen.sigmas, seen.above]][:2]
        self.inside = [*self.inside[1 - LINE :], [seen.step, seen.value]]

    def _give_up(self) -> list[Event]:
        """The spike's level has become the usual one: start a new history there."""
        self.baseline = Baseline(falling=self.signal_kind in ("loss", "norm"))
        return self._end(self.inside, recovered=False)

    def _end(self, accepted: list[list[Any]], recovered: bool) -> list[Event]:
        for step, value in accepted:
            self.baseline.accept(step, value)
        self.inside, self.far, self.back = [], [], 0
        return self._close(recovered)

    def suspected_since(self) -> int | None:
        since = [self.held[0][0]] if self.held else []
        if self.slow > SLOW_DECISION // 2:
            since.append(self.slow_top[0])
        return min(since) if since else super().suspected_since()

    def state(self) -> dict[str, Any]:
        return super().state() | {
            "baseline": copy.deepcopy(vars(self.baseline)),
            "outliers": copy.deepcopy(vars(self.outliers)),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Detector:
        detector = super().from_state(state)
        assert isinstance(detector, MedianMad)
        detector.baseline, detector.outliers = Baseline(), Outliers()
        vars(detector.baseline).update(copy.deepcopy(state["baseline"]))
        vars(detector.outliers).update(copy.deepcopy(state["outliers"]))
        return detector


def slow_units(sigmas: float) -> int:
    """The slow evidence of a value, in UNITs."""
    if math.isnan(sigmas):
        return 0
    return min(math.floor(max(-ALONE, min(ALONE, sigmas)) / UNIT) - SLOW_REFERENCE, SLOW_MOST)

"""The outliers of a signal that were no spikes, which say how much a value as far out means."""

import math

import numpy as np

from .baseline import Floats

SIZES = (3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 20.0)
"""Sigmas from which on outliers are counted."""
HALVED = 2048
"""Values after which half of the counts is forgotten."""
FAR = 8.0
REMEMBERED = 16384
"""Values for which the farthest outliers stay on record."""
FARTHEST = 8
"""Outliers on record."""
FEW = 1
"""So many outliers may be spikes; more are a heavy tail."""
RARE = 1e-3
"""Share of outliers up to which one is evidence in full."""
LESS = 3.0
"""Evidence that an outlier loses if outliers as far out are ten times as frequent."""
LEAST = 0.5
"""Evidence that is left however frequent they are: seven in a row are a spike."""


class Outliers:
    """Counts of outliers by size, and the farthest ones. Attributes are JSON values."""

    def __init__(self) -> None:
        self.seen = 0
        """Values so far."""
        self.counts = [0.0] * len(SIZES)
        """Outliers of at least SIZES sigmas among the last few thousand values."""
        self.passed_over = 0
        """Values of at least FAR sigmas so far that were part of no event."""
        self.farthest: list[list[float]] = []
        """Place and height of the highest outliers, in the unit in which the signal is judged, lowest first."""

    def pass_over(self, values: int) -> None:
        """Count values, at most HALVED, whether outliers or not."""
        before, self.seen = self.seen, self.seen + values
        if before // HALVED < self.seen // HALVED:
            self.counts = [count / 2 for count in self.counts]

    def remember(self, sigmas: float, height: float) -> None:
        """Take an outlier, if it is one."""
        if sigmas < SIZES[0]:
            return
        self.counts = [count + (sigmas >= size) for count, size in zip(self.counts, SIZES, strict=True)]
        recent = [outlier for outlier in self.farthest if outlier[0] > self.seen - REMEMBERED]
        self.farthest = sorted([*recent, [self.seen, height]], key=lambda outlier: outlier[1])[-FARTHEST:]

    def most_evidence(self, sigmas: float, most: float) -> float:
        """The evidence that a value so far out can be: ``most``, and less where such values are frequent."""
        as_far = [count for count, size in zip(self.counts, SIZES, strict=True) if sigmas >= size]
        counted = self.seen if self.seen < HALVED else HALVED + self.seen % HALVED
        share = (as_far[-1] - FEW) / counted if as_far else 0.0
        return most if share <= RARE else max(LEAST, most - LESS * math.log10(share / RARE))

    def farthest_but_one(self, errors: Floats) -> float:
        """The second highest of absolute ``errors`` and the outliers on record."""
        recent = [height for place, height in self.farthest if place > self.seen - REMEMBERED]
        heights = np.append(errors, recent)
        return float(np.partition(heights, -2)[-2])

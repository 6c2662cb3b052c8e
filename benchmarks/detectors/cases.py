"""What a detector is measured on: a log, and the faults in it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int64]
Random = np.random.Generator

SEEDS = {"tune": 1, "score": 2}
TUNING_RUNS = ("linear_lr_half", "tfsd_1_8", "ce_article", "tfsd_1")


class Fault(NamedTuple):
    """Logged values ``start`` to ``end``, counted from 1; ``size`` of the peak in standard deviations of the noise."""

    kind: str
    start: int
    end: int
    size: float
    rise: int = 0
    """Values from the first to the peak."""
    top: float = np.nan
    """Size of the largest value that was logged, which may miss the peak; NaN: not told."""

    @property
    def length(self) -> int:
        """In values."""
        return self.end - self.start + 1


class Case(NamedTuple):
    """A log with values at steps ``first`` + ``every``, ``first`` + 2 ``every``, ...; ``source``: where its noise is from."""

    source: str
    signal: str
    values: Floats
    faults: list[Fault]
    every: int = 1
    first: int = 0

    @property
    def steps(self) -> Steps:
        """Of the values."""
        return self.first + self.every * np.arange(1, len(self.values) + 1)

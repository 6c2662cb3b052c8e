"""Stalls: an instability without a spike, in which the loss stands still while logits grow or after they have grown.

Growing attention and output logits are how runs at too high a learning rate fail (Wortsman et al. 2023, arXiv 2309.14322,
section 3.1). In a healthy run logits grow too, but the loss falls meanwhile. At rates far too high they have grown before the
loss stands still. Every healthy run stands still over 100 values in the end, and its logits have grown, too, since it began;
what sets those runs apart is saturated attention. The rule is this project's own.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from record.metrics import SignalKind

from .base import DETECTORS, Detector
from .events import Event, Stall

ATTENTION = "attention/logit_max"
LOGITS = (ATTENTION, "logit/max", "logit/std")
SPAN = 100
"""Values of the loss over which it is compared, from the median of the first quarter to that of the last. Logits are compared
from half to half: attention is measured so rarely that a quarter would hold a single value, which varies by a tenth."""
FALL = 0.01
"""A loss that falls by less than this fraction stands still."""
GROWTH = 1.5
"""Factor by which logits must have grown."""
FALL_SATURATED = 0.025
"""The same while attention is saturated. Where healthy runs of a million parameters fall by 7 to 13% (steps 50 to 150),
those that stall fall by 2%."""
SATURATED = 400.0
"""Median of the attention logits over the span from which on a stall is put down to them. Runs that fell behind but kept
learning had 240 to 370 (an event of saturation.py), those that stood still at least 550."""
FEWEST = 2
"""Measured values that must show the saturation."""


@DETECTORS.register("stall")
class StallRule(Detector):
    """A loss that stands still while attention or output logits grow, or while attention logits are saturated.

    A metric of :data:`LOGITS` has grown from the median of the span's first half to that of the second, if that of the first is
    positive (``logit/max`` of a metric head is not). Attention is saturated if the median of its logits over the span is above
    :data:`SATURATED`.
    Not covered: a stall in a run whose attention is not measured, unless output logits grow at the same time.
    """

    def __init__(self, signal: str, signal_kind: SignalKind | None = None) -> None:
        super().__init__(signal, signal_kind)
        self.losses: list[list[Any]] = []
        self.logits: dict[str, list[list[Any]]] = {}
        """Steps and values, in order."""
        self.quiet = SPAN
        """Values since the last one at which the stall condition held."""

    @classmethod
    def applies_to(cls, signal: str, signal_kind: SignalKind) -> bool:
        return signal_kind == "loss"

    def update(self, row: Mapping[str, Any]) -> list[Event]:
        for name in LOGITS:
            value = row.get(name)
            if value is not None and math.isfinite(value):
                self.logits.setdefault(name, []).append([row["step"], float(value)])
        return super().update(row)

    def reads(self, columns: Iterable[str]) -> list[str]:
        """The logit metrics."""
        return [column for column in columns if column in LOGITS]

    def take(self, step: int, value: float) -> list[Event]:
        if not math.isfinite(value):
            return []
        self.losses = [*self.losses[1 - SPAN :], [step, value]]
        first = self.losses[0][0]
        for pairs in self.logits.values():
            del pairs[: bisect_left(pairs, [first])]
        before, self.quiet = self.quiet, self.quiet + 1
        if len(self.losses) < SPAN:
            return []
        early, late = self.losses[SPAN // 4][0], self.losses[-SPAN // 4][0]
        begin, end = _ends(self.losses, early, late)
        growth, name = self._growth() if end >= (1 - FALL) * begin else (0.0, "")
        if growth < GROWTH:
            growth, name = self._saturation() if end >= (1 - FALL_SATURATED) * begin else (0.0, "")
        if not name:
            return []
        self.quiet = 0
        size = self.logits[name][-1][1]
        return [Stall(self.kind, self.signal, first, step, end - begin, name, growth, size)] if before >= SPAN else []

    def _growth(self) -> tuple[float, str]:
        """The largest growth factor of any logit metric, and its name."""
        growths, half = [(0.0, "")], self.losses[SPAN // 2][0]
        for name, pairs in self.logits.items():
            begin, end = _ends(pairs, half, half)
            if begin > 0:
                growths.append((end / begin, name))
        return max(growths)

    def _saturation(self) -> tuple[float, str]:
        """If attention logits are saturated, the factor by which they have grown over the span, and their name."""
        values = [value for _, value in self.logits.get(ATTENTION, [])]
        if len(values) < FEWEST or median(values) <= SATURATED:
            return 0.0, ""
        first = next(value for value in values if value > 0)  # queries that start at 0 have logits of 0
        return values[-1] / first, ATTENTION


def _ends(pairs: list[list[Any]], early: int, late: int) -> tuple[float, float]:
    """Medians of the values before step ``early`` and from step ``late`` on; 0 for both if either has none."""
    begin = [value for _, value in pairs[: bisect_left(pairs, [early])]]
    end = [value for _, value in pairs[bisect_left(pairs, [late]) :]]
    return (median(begin), median(end)) if begin and end else (0.0, 0.0)

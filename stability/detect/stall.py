"""Stalls: an instability without a spike, in which logits grow while the loss stands still.

Growing attention and output logits are how runs at too high a learning rate fail (Wortsman et al. 2023, arXiv 2309.14322,
section 3.1). In a healthy run logits grow too, but the loss falls meanwhile. The rule is this project's own.
"""

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

from record.metrics import SignalKind

from .base import DETECTORS, Detector
from .events import Event, Stall

LOGITS = ("attention/logit_max", "logit/max", "logit/std")
SPAN = 100
"""Values of the loss over which it is compared, from the median of the first quarter to that of the last."""
FALL = 0.01
"""A loss that falls by less than this fraction stands still."""
GROWTH = 1.5
"""Factor by which logits must have grown."""


@DETECTORS.register("stall")
class StallRule(Detector):
    """A loss that stands still while attention or output logits grow.

    A metric of :data:`LOGITS` counts if it is measured in both quarters and positive in the first (``logit/max`` of a metric head
    is not).
    """

    def __init__(self, signal: str, signal_kind: SignalKind | None = None) -> None:
        super().__init__(signal, signal_kind)
        self.losses: list[list[Any]] = []
        self.logits: dict[str, list[list[Any]]] = {}
        """Steps and values, in order."""
        self.quiet = SPAN
        """Values since the last one at which the stall condition held."""

    def update(self, row: Mapping[str, Any]) -> list[Event]:
        for name in LOGITS:
            value = row.get(name)
            if value is not None and math.isfinite(value):
                self.logits.setdefault(name, []).append([row["step"], float(value)])
        return super().update(row)

    def take(self, step: int, value: float) -> list[Event]:
        if not math.isfinite(value):
            return []
        self.losses = [*self.losses[1 - SPAN :], [step, value]]
        first = self.losses[0][0]
        self.logits = {name: [pair for pair in pairs if pair[0] >= first] for name, pairs in self.logits.items()}
        before, self.quiet = self.quiet, self.quiet + 1
        if len(self.losses) < SPAN:
            return []
        early, late = self.losses[SPAN // 4][0], self.losses[-SPAN // 4][0]
        begin, end = _ends(self.losses, early, late)
        growth, name = self._growth(early, late)
        if end < (1 - FALL) * begin or growth < GROWTH:
            return []
        self.quiet = 0
        return [Stall(self.kind, self.signal, first, step, end - begin, name, growth)] if before >= SPAN else []

    def _growth(self, early: int, late: int) -> tuple[float, str]:
        """The largest growth factor of any logit metric, and its name."""
        growths = [(0.0, "")]
        for name, pairs in self.logits.items():
            begin, end = _ends(pairs, early, late)
            if begin > 0:
                growths.append((end / begin, name))
        return max(growths)


def _ends(pairs: list[list[Any]], early: int, late: int) -> tuple[float, float]:
    """Medians of the values before step ``early`` and from step ``late`` on; 0 for both if either has none."""
    begin, end = [value for step, value in pairs if step < early], [value for step, value in pairs if step >= late]
    return (median(begin), median(end)) if begin and end else (0.0, 0.0)

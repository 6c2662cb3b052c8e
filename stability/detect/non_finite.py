"""The rule for values that are NaN or infinite."""

from __future__ import annotations

import math

from .base import DETECTORS, Detector
from .events import Event, NonFinite


@DETECTORS.register("non_finite")
class NonFiniteRule(Detector):
    """Values that are NaN or infinite, an event for each unbroken row of them."""

    def __init__(self, signal: str) -> None:
        super().__init__(signal)
        self.steps: list[int] = []
        """First and last step of the row that is going on."""

    def take(self, step: int, value: float) -> list[Event]:
        if math.isfinite(value):
            return self.finish()
        self.steps = [*self.steps[:1], step]
        return []

    def finish(self) -> list[Event]:
        steps, self.steps = self.steps, []
        return [NonFinite(self.kind, self.signal, steps[0], steps[-1])] if steps else []

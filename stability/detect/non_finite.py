"""The rule for values that are NaN or infinite."""

from __future__ import annotations

import math

from .base import Detector
from .events import Event, NonFinite


class NonFiniteRule(Detector):
    """Values that are NaN or infinite, an event for each unbroken row of them."""

    name = "non_finite"

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
        return [NonFinite(self.name, self.signal, steps[0], steps[-1])] if steps else []

"""The rule for NaN and infinite values."""

import math

from record.metrics import SignalKind

from .base import DETECTORS, Detector
from .events import Event, NonFinite


@DETECTORS.register("non_finite")
class NonFiniteRule(Detector):
    """NaN and infinite values: one event for each run of consecutive ones."""

    def __init__(self, signal: str, signal_kind: SignalKind | None = None) -> None:
        super().__init__(signal, signal_kind)
        self.steps: list[int] = []
        """First and last step of the current run."""

    def take(self, step: int, value: float) -> list[Event]:
        if math.isfinite(value):
            return self.finish()
        self.steps = [*self.steps[:1], step]
        return []

    def finish(self) -> list[Event]:
        steps, self.steps = self.steps, []
        return [NonFinite(self.kind, self.signal, steps[0], steps[-1])] if steps else []

"""Every step at which the signal is higher than ``1.5`` times the first value it had."""

from stability.detect.base import DETECTORS
from stability.detect.published import FlagRule


@DETECTORS.register("above_the_first")
class AboveTheFirst(FlagRule):
    def __init__(self, signal: str) -> None:
        super().__init__(signal)
        self.first: float | None = None

    def judge(self, value: float) -> tuple[bool, float, float]:
        self.first = value if self.first is None else self.first
        return value > 1.5 * self.first, value - self.first, 0.0

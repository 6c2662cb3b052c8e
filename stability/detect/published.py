"""Other projects' rules, as published. For a rule that only flags steps, each run of consecutive flagged steps is one
event."""

import math
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from record.metrics import SignalKind

from .base import DETECTORS, Detector
from .events import Event

Floats = npt.NDArray[np.float64]


class FlagRule(Detector):
    """A rule that flags steps. An event begins with the first of ``in_a_row`` flagged steps and ends with the last."""

    in_a_row: ClassVar[int] = 1

    def __init__(self, signal: str, signal_kind: SignalKind | None = None) -> None:
        super().__init__(signal, signal_kind)
        self.flags: list[list[Any]] = []
        """Step, height and sigmas of flagged steps that are still too few for an event."""

    def take(self, step: int, value: float) -> list[Event]:
        if not math.isfinite(value):
            return []
        flagged, height, sigmas = self.judge(value)
        if not flagged:
            self.flags = []
            return self._close(recovered=True)
        self.flags.append([step, height, sigmas])
        if self.open is not None or len(self.flags) >= self.in_a_row:
            for flag in self.flags:
                self._extend(*flag)
            assert self.open is not None
            if len(self.flags) > 1:
                self.open.opened_step = step
            self.flags = []
        return []

    @abstractmethod
    def judge(self, value: float) -> tuple[bool, float, float]:
        """Take a finite value; returns whether it is flagged, and its height above the expected value, also in sigmas."""


class WindowRule(FlagRule):
    """A rule on mean and standard deviation of the last ``window`` values; silent before there are ``fewest``."""

    window: ClassVar[int]
    fewest: ClassVar[int]

    def __init__(self, signal: str, signal_kind: SignalKind | None = None) -> None:
        super().__init__(signal, signal_kind)
        self.history: list[float] = []

    def judge(self, value: float) -> tuple[bool, float, float]:
        verdict = (False, 0.0, 0.0)
        if len(self.history) >= self.fewest:
            window = self.compared_with(value)
            mean, deviation = float(window.mean()), float(window.std())
            height = value - mean
            sigmas = height / deviation if deviation > 0 else 0.0
            verdict = (self.flag(value, mean, sigmas), height, sigmas)
        self.history.append(value)
        del self.history[: -self.window]
        return verdict

    def compared_with(self, value: float) -> Floats:
        """The window that ``value`` is compared with."""
        return np.asarray(self.history)

    @abstractmethod
    def flag(self, value: float, mean: float, sigmas: float) -> bool:
        """Whether to flag ``value``, which is ``sigmas`` above the mean of its window."""


@DETECTORS.register("olmo_core")
class OlmoCore(WindowRule):
    """OLMo-core's stability monitor: more than 6 sigma above the mean of the 128 values before; silent until there are 128.
    Source: olmo_core/train/callbacks/stability_monitor.py. A spike enters the window, so a plateau becomes normal."""

    window = fewest = 128

    def flag(self, value: float, mean: float, sigmas: float) -> bool:
        return sigmas > 6.0


@DETECTORS.register("olmo2")
class Olmo2(WindowRule):
    """OLMo 2's spike score (arXiv 2501.00656, section 3.2): at least 7 sigma away from the mean of the last 1,000 values.

    ``score`` counts both sides, as in the paper; an event is a rise. The paper does not say what holds before there are
    1,000 values; here the rule starts at the 129th (OLMo-core's window), so that short runs have a score.
    """

    window, fewest = 1000, 128

    def __init__(self, signal: str, signal_kind: SignalKind | None = None) -> None:
        super().__init__(signal, signal_kind)
        self.seen = self.outliers = 0

    @property
    def score(self) -> float:
        """Share of all values so far that were outliers."""
        return self.outliers / self.seen if self.seen else 0.0

    def judge(self, value: float) -> tuple[bool, float, float]:
        self.seen += 1
        return super().judge(value)

    def flag(self, value: float, mean: float, sigmas: float) -> bool:
        self.outliers += abs(sigmas) >= 7.0
        return sigmas >= 7.0


@DETECTORS.register("llmc")
class LlmC(WindowRule):
    """llm.c's outlier detector: the z-score of a value within a window of 128 that includes it.

    Source: llmc/outlier_detector.h. The threshold there is the user's (-sl and -sg; none by default), here 6 as OLMo-core's.
    Since the value is in the window, z cannot pass sqrt(127) = 11.3, and the first steps of a spike hide the rest of it.
    """

    window, fewest = 128, 127

    def compared_with(self, value: float) -> Floats:
        return np.asarray([*self.history[-127:], value])

    def flag(self, value: float, mean: float, sigmas: float) -> bool:
        return sigmas > 6.0


@DETECTORS.register("llm_foundry")
class LlmFoundry(WindowRule):
    """llm-foundry's KillLossSpike: five losses in a row of at least twice the mean of the last 100.

    Source: llmfoundry/callbacks/kill_loss_spike_callback.py, with its defaults. Left out: its alarm for losses that stay
    high from the start, and the growth of its window to 1/20 of a run of more than 2,000 steps, since a detector does not
    know the run's length.
    """

    window = fewest = 100
    in_a_row = 5

    def flag(self, value: float, mean: float, sigmas: float) -> bool:
        return value >= 2.0 * mean


@DETECTORS.register("loss_ratio")
class LossRatio(FlagRule):
    """A loss more than 1.2 times the lowest one before it.

    The ratio is that of Li et al. (arXiv 2108.06084, "loss ratio"); the threshold 1.2 is this project's choice. The rule
    measures no noise, and is silent for a signal that has been 0 or below.
    """

    def __init__(self, signal: str, signal_kind: SignalKind | None = None) -> None:
        super().__init__(signal, signal_kind)
        self.lowest: float | None = None

    def judge(self, value: float) -> tuple[bool, float, float]:
        lowest = value if self.lowest is None else self.lowest
        self.lowest = min(lowest, value)
        return 0 < 1.2 * lowest < value, value - lowest, 0.0

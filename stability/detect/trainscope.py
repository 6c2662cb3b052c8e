"""The rules of trainscope 1.8.1, a debugger for loss spikes, as published (github.com/kaelvalen/trainscope)."""

import numpy as np

from record.metrics import SignalKind

from .base import DETECTORS
from .baseline import MAD_TO_SIGMA, median
from .published import FlagRule

WINDOW, FEWEST = 200, 30
"""Values before this one that it is compared with, at most and at least."""
SLACK = 1.0
"""Sigmas that a value has to be off for the sum to grow."""
THRESHOLD = 6.0
"""Sum, in sigmas, at which the rule fires."""
LEAST_SIGMA = 1e-12
BASELINE = 40
"""First values, from which the kurtosis rule learns what is usual."""
CROSSING = 3.0
"""Sigmas above the usual at which it flags a value."""
KURTOSIS = "hidden_kurtosis/"
"""How the metrics begin that it is meant for."""


@DETECTORS.register("cusum")
class Cusum(FlagRule):
    """The default detector, for the loss: the sums of (z - 1), kept at or above 0, and of (z + 1), kept at or below 0, where z
    is the distance from the median of the last 200 values in sigmas by their MAD. Either fires at 6, and both begin anew.

    Source: core/detectors/changepoint.py, with its defaults; the test is Page's (Biometrika 41, 1954). There a fall is a spike as
    well; here an event is a rise. Left out: the score from ``ruptures``, which decides nothing. Each value enters the window,
    so a new level becomes the usual one after some hundred.
    """

    def __init__(self, signal: str, signal_kind: SignalKind | None = None) -> None:
        super().__init__(signal, signal_kind)
        self.history: list[float] = []
        self.above = self.below = 0.0
        """The two sums."""

    def judge(self, value: float) -> tuple[bool, float, float]:
        verdict = (False, 0.0, 0.0)
        if len(self.history) >= FEWEST:
            window = np.asarray(self.history)
            usual = median(window)
            sigma = max(MAD_TO_SIGMA * median(np.abs(window - usual)), LEAST_SIGMA)
            z = (value - usual) / sigma
            self.above = max(0.0, self.above + z - SLACK)
            self.below = min(0.0, self.below + z + SLACK)
            verdict = (self.above >= THRESHOLD, value - usual, z)
            if self.above >= THRESHOLD or -self.below >= THRESHOLD:
                self.above = self.below = 0.0
        self.history.append(value)
        del self.history[:-WINDOW]
        return verdict


@DETECTORS.register("kurtosis")
class Kurtosis(FlagRule):
    """The early warning from activations: the kurtosis of a block (hidden_kurtosis/layer_NN) is more than 3 sigmas above the
    median of its first 40 values, sigmas by their MAD, in three values in a row.

    Source: analysis.py, first_crossing_step. There the first crossing of a finished run of at least 50 values is told; here each
    one is an event. There the outputs of all leaf modules are measured, every 5 steps, here the residual stream where the
    attention is probed; and there the gradient norm is judged by the same rule.
    """

    in_a_row = 3

    @classmethod
    def applies_to(cls, signal: str, signal_kind: SignalKind) -> bool:
        return signal.startswith(KURTOSIS)

    def __init__(self, signal: str, signal_kind: SignalKind | None = None) -> None:
        super().__init__(signal, signal_kind)
        self.first: list[float] = []

    def judge(self, value: float) -> tuple[bool, float, float]:
        if len(self.first) < BASELINE:
            self.first.append(value)
            return False, 0.0, 0.0
        usual = sorted(self.first)[BASELINE // 2]  # the upper of the two in the middle, as there
        sigma = MAD_TO_SIGMA * sorted(abs(each - usual) for each in self.first)[BASELINE // 2]
        height = value - usual
        return height > CROSSING * sigma, height, height / sigma if sigma > 0 else 0.0

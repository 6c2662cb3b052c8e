"""The default spike rule over a finished series: the same events as value by value, to the bit, but many values at once.

The baseline depends only on the values it has accepted, which are nearly all. So for a batch of values its expectations are
computed as if all were accepted. A value of at most REFERENCE sigmas adds no evidence and would be accepted. Any other value
goes to the detector itself, set to the state it would have there, and so do the following values until it holds no evidence.
If a spike opens, a new batch begins when it is over.

Shapes: N values of the batch, K of a window, P pairs of values in a line.
"""

import math
from functools import cache

import numpy as np
import numpy.typing as npt

from .baseline import CLIP, ERRORS, LINE, LOWEST, MAD_TO_SIGMA, RESOLUTION, SMALL_SAMPLE, TINY, logarithmic
from .events import Event
from .median_mad import REFERENCE, MedianMad

Floats = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int64]

NOISE = ERRORS // 2
"""Errors used for the noise once the history is full."""
SMALLEST, LARGEST = 32, 512
"""Values in a batch: few after a spike, since another may follow, then more, while their slopes fit a cache."""


def detect_batches(detector: MedianMad, steps: Steps, values: Floats) -> list[Event]:
    """The events that end within ``values``; ``detector`` ends in the state it would have value by value. Raises ValueError
    unless the steps ascend and follow the last one the detector has seen."""
    seen = steps if detector.last_step is None else np.append(detector.last_step, steps)
    back = np.flatnonzero(np.diff(seen) <= 0)
    if back.size:
        raise ValueError(f"step {seen[back[0] + 1]} after step {seen[back[0]]}: steps of a series ascend")
    detector.last_step = int(seen[-1]) if len(seen) else None
    positive = logarithmic(detector.signal)
    judgeable = np.isfinite(values) & (values > 0 if positive else True)  # the rule skips the others
    steps, values = steps[judgeable], values[judgeable]
    # numpy's logarithm may differ from math's in the last bit.
    judged = np.fromiter(map(math.log, values), np.float64) if positive else values
    found: list[Event] = []
    place, size = 0, SMALLEST
    while place < len(values):
        if detector.open or detector.held or len(detector.baseline.errors) < ERRORS:
            found += detector.take(int(steps[place]), float(values[place]))
            place, size = place + 1, SMALLEST
        else:
            part = slice(place, place + size)
            place += _Batch(detector, steps[part], values[part], judged[part]).run()
            size = min(2 * size, LARGEST)
    return found


class _Batch:
    """Values after a full history, and what is expected of each if all before it are accepted."""

    def __init__(self, detector: MedianMad, steps: Steps, values: Floats, judged: Floats) -> None:
        baseline = detector.baseline
        self.detector = detector
        self.stream = list(zip(steps.tolist(), values.tolist(), strict=True))
        self.steps = np.append(baseline.steps, steps)
        self.judged = np.append(baseline.values, judged)
        # The history at each of the N values, and the one after the last: N + 1 windows.
        time = np.log1p(self.steps.astype(np.float64))
        judged_nk = _windows(self.judged)
        slopes = _medians(_slopes(self.judged, time))
        self.slopes = np.minimum(slopes, 0.0) if baseline.falling else slopes
        self.intercepts = _medians(judged_nk - self.slopes[:, None] * _windows(time))
        now_n = np.array([math.log1p(step) for step in steps.tolist()])
        forecast_n = self.intercepts[:-1] + self.slopes[:-1] * now_n
        self.errors = np.append(baseline.errors, judged - forecast_n)
        bias_n, sigma_n = self._noise()
        level_n = np.maximum(forecast_n + bias_n, judged_nk[:-1, -LOWEST:].min(axis=1))
        unit_n = 1.0 if logarithmic(detector.signal) else np.abs(level_n)
        self.sigma = np.maximum(np.maximum(sigma_n, RESOLUTION * unit_n), TINY)
        quiet_n = (judged - level_n) / self.sigma <= REFERENCE  # NaN is not quiet
        self.loud = np.append(np.flatnonzero(~quiet_n), len(steps))

    def _noise(self) -> tuple[Floats, Floats]:
        """Bias and sigma of the errors before each value."""
        errors_nk = _windows(self.errors[ERRORS - NOISE : -1], NOISE)
        bias_n = _medians(errors_nk.copy())
        distance_nk = np.abs(errors_nk - bias_n[:, None])
        mad_n = MAD_TO_SIGMA * _medians(distance_nk.copy())
        clipped_nk = np.minimum(distance_nk, (CLIP * mad_n)[:, None])
        sigma_n = np.sqrt(np.mean(clipped_nk * clipped_nk, axis=1))
        return bias_n, sigma_n * (1 + SMALL_SAMPLE / NOISE)

    def run(self) -> int:
        """Feed the values to the detector up to the end or the first spike; returns how many."""
        place = 0
        while place < len(self.stream):
            place = self._pass_over(place)
            while place < len(self.stream):
                self.detector.take(*self.stream[place])
                place += 1
                if self.detector.open:
                    return place
                if not self.detector.held:
                    break
        return place

    def _pass_over(self, place: int) -> int:
        """Accept the quiet values from ``place`` on; returns the place after them."""
        after = int(self.loud[np.searchsorted(self.loud, place)])
        if after > place:
            baseline = self.detector.baseline
            baseline.steps = self.steps[after : after + LINE].tolist()
            baseline.values = self.judged[after : after + LINE].tolist()
            baseline.errors = self.errors[after : after + ERRORS].tolist()
            baseline.line = [float(self.intercepts[after]), float(self.slopes[after])]
        return after


def _windows(values: Floats, length: int = LINE) -> Floats:
    """All windows of ``length`` values, as a view: (windows, length)."""
    return np.lib.stride_tricks.sliding_window_view(values, length)


def _slopes(values: Floats, time: Floats) -> Floats:
    """Slopes between all pairs of values in each window: (windows, P). Each slope is computed only once."""
    count = len(values) - LINE + 1
    value_nk, time_nk = (_windows(np.append(each, np.full(LINE, np.nan))) for each in (values, time))
    slope_nk = (value_nk[:, 1:] - value_nk[:, :1]) / (time_nk[:, 1:] - time_nk[:, :1])  # to each of the values after
    return slope_nk.ravel().take(_places()[:count])


@cache
def _places() -> npt.NDArray[np.intp]:
    """Index of each pair of a window in the array of slopes to the LINE - 1 following values."""
    earlier, later = np.triu_indices(LINE, 1)
    after = LINE - 1
    place_p = earlier * after + later - earlier - 1
    return np.arange(LARGEST + 1)[:, None] * after + place_p


def _medians(rows: Floats) -> Floats:
    """Median of each row, of even length; reorders the rows."""
    half = rows.shape[1] // 2
    rows.partition(half, axis=1)
    return (rows[:, :half].max(axis=1) + rows[:, half]) / 2

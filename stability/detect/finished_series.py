"""The default spike rule over a finished series: the same events as value by value, to the bit, but many values at once.

The baseline depends only on the values it has accepted, which are nearly all. So for a batch of values its expectations are
computed as if all were accepted. A value of at most REFERENCE sigmas adds no evidence and would be accepted, unless the slow
evidence of a loss opens a spike there. Any other value goes to the detector itself, set to the state it would have there, and
so do the following values until it holds no evidence. If a spike opens, a new batch begins when it is over.

Shapes: N values of the batch, G groups of REFIT values for which the baseline is the same, K of a window, P pairs in a line.
"""

import math
from functools import cache

import numpy as np
import numpy.typing as npt

from .baseline import (
    CLIP,
    ERRORS,
    HISTORY,
    HUGE,
    LINE,
    LOWEST,
    MAD_TO_SIGMA,
    REFIT,
    RESOLUTION,
    SMALL_SAMPLE,
    TINY,
    spacing,
)
from .events import Event
from .median_mad import ALONE, REFERENCE, SLOW_DECISION, SLOW_MOST, SLOW_REFERENCE, UNIT, MedianMad, Seen

Floats = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int64]

NOISE = ERRORS // 2
"""Errors used for the noise once the history is full."""
SMALLEST, LARGEST = 32, 1024
"""Values in a batch, in whole groups: few after a spike, since another may follow, then more, while their slopes fit a cache."""


def detect_batches(detector: MedianMad, steps: Steps, values: Floats) -> list[Event]:
    """The events that end within ``values``; ``detector`` ends in the state it would have value by value. Raises ValueError
    unless the steps ascend and follow the last one the detector has seen."""
    seen = steps if detector.last_step is None else np.append(detector.last_step, steps)
    back = np.flatnonzero(np.diff(seen) <= 0)
    if back.size:
        raise ValueError(f"step {seen[back[0] + 1]} after step {seen[back[0]]}: steps of a series ascend")
    detector.last_step = int(seen[-1]) if len(seen) else None
    positive = detector.signal_kind == "norm"
    judgeable = (np.abs(values) <= HUGE) & (values > 0 if positive else True)  # the rule skips the others
    steps, values = steps[judgeable], values[judgeable]
    # numpy's logarithm may differ from math's in the last bit.
    judged = np.fromiter(map(math.log, values), np.float64) if positive else values
    found: list[Event] = []
    place, size = 0, SMALLEST
    while place < len(values):
        baseline = detector.baseline
        quiet = not detector.open and not detector.held
        if quiet and len(baseline.errors) == ERRORS and baseline.accepted % REFIT == 0:
            part = slice(place, place + size)
            place += _Batch(detector, steps[part], values[part], judged[part]).run()
            size = min(2 * size, LARGEST)
        else:
            found += detector.take(int(steps[place]), float(values[place]))
            place += 1
            size = SMALLEST if detector.open else size
    return found


class _Batch:
    """Values after a full history, and what is expected of each if all before it are accepted."""

    def __init__(self, detector: MedianMad, steps: Steps, values: Floats, judged: Floats) -> None:
        baseline = detector.baseline
        self.detector = detector
        self.stream = list(zip(steps.tolist(), values.tolist(), strict=True))
        self.steps = np.append(baseline.steps, steps)
        self.judged = np.append(baseline.values, judged)
        self.lines, self.usual = self._lines()
        group_n = np.arange(len(steps)) // REFIT
        now_n = np.fromiter(map(math.log1p, steps.tolist()), np.float64)
        forecast_n = self.lines[group_n, 0] + self.lines[group_n, 1] * now_n
        self.errors = np.append(baseline.errors, judged - forecast_n)
        self.noise = self._noise()
        lowest_n = _windows(self.judged[HISTORY - LOWEST : -1], LOWEST).min(axis=1)
        usual_n = self.usual[group_n, 0] + self.usual[group_n, 1] * now_n
        level_n = np.maximum(np.maximum(forecast_n + self.noise[group_n, 0], lowest_n), usual_n)
        unit_n = 1.0 if detector.signal_kind == "norm" else np.abs(level_n)
        sigma_n = np.maximum(np.maximum(self.noise[group_n, 1], RESOLUTION * unit_n), TINY)
        self.above = judged - level_n
        self.sigmas = self.above / sigma_n
        loud_n = ~(self.sigmas <= REFERENCE)  # NaN is not quiet
        self.loud = np.append(np.flatnonzero(loud_n), len(steps))
        self.slow = detector.signal_kind == "loss"
        self.units = _slow_units(self.sigmas)

    def _lines(self) -> tuple[Floats, Floats]:
        """Intercept and slope of the line and of the usual level of each group, and of the one after the last value."""
        time = np.log1p(self.steps.astype(np.float64))
        values_gk, time_gk = _grouped(self.judged), _grouped(time)
        slope_g = self._slope(_medians(_slopes(self.judged[HISTORY - LINE :], time[HISTORY - LINE :])))
        lines = _medians(values_gk[:, -LINE:] - slope_g[:, None] * time_gk[:, -LINE:]), slope_g
        half = HISTORY // 2
        rise_g = _medians(values_gk[:, half:].copy()) - _medians(values_gk[:, :half].copy())
        run_g = _middles(time_gk[:, half:]) - _middles(time_gk[:, :half])
        slope_g = self._slope(rise_g / run_g)
        usual = _medians(values_gk - slope_g[:, None] * time_gk), slope_g
        return np.stack(lines, axis=1), np.stack(usual, axis=1)

    def _slope(self, slope_g: Floats) -> Floats:
        return np.minimum(slope_g, 0.0) if self.detector.baseline.falling else slope_g

    def _noise(self) -> Floats:
        """Bias and sigma of the errors before each group."""
        errors_gk = _grouped(self.errors[ERRORS - NOISE :], NOISE)
        bias_g = _medians(errors_gk.copy())
        distance_gk = np.abs(errors_gk - bias_g[:, None])
        last_digit_g = spacing(_grouped(self.judged[HISTORY - LINE :], LINE))
        mad_g = np.maximum(MAD_TO_SIGMA * _medians(distance_gk.copy()), last_digit_g)
        clipped_gk = np.minimum(distance_gk, (CLIP * mad_g)[:, None])
        sigma_g = np.maximum(np.sqrt(np.mean(clipped_gk * clipped_gk, axis=1)), last_digit_g / math.sqrt(12))
        return np.stack([bias_g, sigma_g * (1 + SMALL_SAMPLE / NOISE)], axis=1)

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
        if self.slow and after > place:
            after = self._add_slowly(place, after)
        if after == place:
            return place
        baseline, group = self.detector.baseline, after // REFIT
        baseline.accepted += after - place
        baseline.steps = self.steps[after : after + HISTORY].tolist()
        baseline.values = self.judged[after : after + HISTORY].tolist()
        baseline.errors = self.errors[after : after + ERRORS].tolist()
        baseline.line, baseline.usual = self.lines[group].tolist(), self.usual[group].tolist()
        baseline.noise = self.noise[group].tolist()
        self.detector.outliers.pass_over(after - place)
        return after

    def _add_slowly(self, place: int, after: int) -> int:
        """Add the slow evidence of quiet values; returns the place after them, or that of the one that opens a spike."""
        detector = self.detector
        sum_n = np.cumsum(self.units[place:after])
        slow_n = sum_n - np.minimum(np.minimum.accumulate(sum_n), -detector.slow)
        opens = np.flatnonzero(slow_n > SLOW_DECISION)
        slow_n = slow_n[: opens[0] if opens.size else None]
        if not slow_n.size:
            return place
        after = place + len(slow_n)
        detector.slow = int(slow_n[-1])
        zero = np.flatnonzero(slow_n == 0)
        begin = place + (int(zero[-1]) + 1 if zero.size else 0)
        if zero.size:
            detector.slow_top = []
        if begin < after:
            top = begin + int(np.argmax(self.above[begin:after]))
            step, value = self.stream[top]
            above = float(self.above[top])
            first = detector.slow_top[0] if detector.slow_top else self.stream[begin][0]
            if not detector.slow_top or above > detector.slow_top[3]:
                detector.slow_top = [first, *Seen(step, value, above, float(self.sigmas[top]), above)]
        return after


def _slow_units(sigmas: Floats) -> npt.NDArray[np.int64]:
    units = np.minimum(np.floor(np.clip(sigmas, -ALONE, ALONE) / UNIT) - SLOW_REFERENCE, SLOW_MOST)
    return np.where(np.isnan(sigmas), 0, units).astype(np.int64)


def _windows(values: Floats, length: int) -> Floats:
    """All windows of ``length`` values, as a view: (windows, length)."""
    return np.lib.stride_tricks.sliding_window_view(values, length)


def _grouped(values: Floats, length: int = HISTORY) -> Floats:
    """The windows before each group, and the one after the last whole group: (G + 1, length)."""
    return _windows(values, length)[::REFIT]


def _slopes(values: Floats, time: Floats) -> Floats:
    """Slopes between all pairs of values in each group's window: (G + 1, P). Each slope is computed only once."""
    count = len(values) - LINE + 1
    value_nk, time_nk = (_windows(np.append(each, np.full(LINE, np.nan)), LINE) for each in (values, time))
    slope_nk = (value_nk[:, 1:] - value_nk[:, :1]) / (time_nk[:, 1:] - time_nk[:, :1])  # to each of the values after
    return slope_nk.ravel().take(_places()[: (count - 1) // REFIT + 1])


@cache
def _places() -> npt.NDArray[np.intp]:
    """Index of each pair of a group's window in the array of slopes to the LINE - 1 following values."""
    earlier, later = np.triu_indices(LINE, 1)
    after = LINE - 1
    place_p = earlier * after + later - earlier - 1
    return np.arange(0, LARGEST + 1, REFIT)[:, None] * after + place_p


def _middles(rows: Floats) -> Floats:
    """Median of each row, of even length and ascending."""
    half = rows.shape[1] // 2
    return (rows[:, half - 1] + rows[:, half]) / 2


def _medians(rows: Floats) -> Floats:
    """Median of each row, of even length; reorders the rows."""
    half = rows.shape[1] // 2
    rows.partition(half, axis=1)
    return (rows[:, :half].max(axis=1) + rows[:, half]) / 2

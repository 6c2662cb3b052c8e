"""Spike detection: the default rule, and every rule by name.

The rule (docs/mathematics.md, section 4) asks of each value how many sigmas of the noise it lies above what the values before it
lead one to expect, and of the last few values together whether that can be chance:

1. *Expected*: the straight line in log(1 + step) through the last 32 values by the median of all pairwise slopes (Theil-Sen),
   plus the median of the last errors of such forecasts. Never below the lowest of the last 4 values: a curve that stops
   falling is no spike.
2. *Noise*: the standard deviation of those errors with each clipped at 3 x 1.4826 x MAD. Forecast errors, not residuals: what a
   bend of the curve or autocorrelated noise adds to them is in the scale that they are judged by.
3. *Evidence*: a sum that each value adds its sigmas minus 2.5 to, at most 3 a value, never below 0 (a one-sided CUSUM; Page
   1954). Two values in a row of a little more than 4 sigmas open a spike. One value alone does if it is 2.5 times as far
   out as any of the last 256 errors, in either direction, and at least 8 sigmas; 20 are enough in any case. Where the noise
   has heavy tails, its outliers themselves ask for more.
4. *Frozen history*: from the first value that adds evidence until it is used up, or the spike is over, no value enters the
   history. A spike is over when two values in a row are back: one value is noise, at the end as at the start. It is closed as
   not recovered, and its level is the new history, when 200 values have brought no new peak.
5. *Creep*: a loss is not expected to rise. When the median of its last 32 values is 6 sigmas above the lowest such median,
   that is one spike from there on. (A line would follow any rise that is slow enough.)

Norms and update sizes are judged by their logarithm, and may rise: the noise of a gradient norm is multiplicative. In the runs of
configs/suites/scale.yaml its excursions of one step reach 4 to 12 standard deviations as they are, 3 to 10 on a log scale.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from .detectors import (
    Detector,
    Event,
    LlmC,
    LlmFoundry,
    LossRatio,
    NonFinite,
    NonFiniteRule,
    Olmo2,
    OlmoCore,
    Spike,
    Stall,
)
from .stalls import StallRule

__all__ = [
    "DEFAULT", "DETECTORS", "Baseline", "Event", "MedianMad", "NonFinite", "Spike", "Stall", "detect", "detect_rows",
    "detect_series", "detector_from_state", "judged_from", "make_detector",
]  # fmt: skip

Floats = npt.NDArray[np.float64]

LINE = 32
"""Values that the line of expectation goes through, once there are so many."""
FEWEST = 8
"""Values before the first forecast, and forecasts before the first verdict: the rule speaks from the 17th value on."""
ERRORS = 256
"""Forecast errors kept. The newer half of them is the noise, at least MINIMUM_ERRORS: the noise of a young run changes fast."""
MINIMUM_ERRORS = 16
LOWEST = 4
"""The level expected is not below the lowest of so many last values."""
CLIP = 3.0
"""MAD sigmas at which an error is clipped before the standard deviation is taken."""
MAD_TO_SIGMA = 1.4826
"""The standard deviation of normal noise in units of its median absolute deviation."""
SMALL_SAMPLE = 2.0
"""Sigma is taken larger by the factor 1 + 2/n when it is estimated from n errors."""
RESOLUTION = 1e-3
"""Sigma is at least this share of the level: a signal without noise does not spike at its last digits."""
TINY = 1e-12
"""Sigma of a signal that has been exactly 0."""

REFERENCE = 2.5
"""Sigmas that count neither for nor against a spike."""
MOST = 3.0
"""The most that one value adds to the evidence."""
DECISION = 3.0
"""A spike opens when the evidence is greater."""
ALONE = 20.0
"""Sigmas at which one value is a spike by itself, whatever the noise."""
ALONE_LEAST = 8.0
"""The same at least, where the noise has shown no outliers in NOISE_KNOWN errors."""
ALONE_FACTOR = 2.5
"""Times the farthest error on record."""
NOISE_KNOWN = 64
LONGEST = 200
"""Values without a new peak after which a spike is closed as not recovered."""
CREEP = 6.0
"""Sigmas by which the median of the last LINE values of a loss may exceed its lowest."""


def logarithmic(signal: str) -> bool:
    """Whether the signal is judged by its logarithm: norms and sizes of updates."""
    return "norm" in signal or "rms" in signal


def judged(signal: str, value: float) -> float:
    """``value`` on the scale on which its signal is judged; NaN if it is not finite or has no logarithm there."""
    if not math.isfinite(value) or (logarithmic(signal) and value <= 0):
        return math.nan
    return math.log(value) if logarithmic(signal) else value


def resolution(signal: str, level: float, share: float) -> float:
    """``share`` of a level, in the unit in which its signal is judged."""
    return share * (1.0 if logarithmic(signal) else abs(level))


def judged_from(detector: Detector, warmup_steps: int) -> int:
    """The first step of a run that ``detector`` sees: for spikes of norms and sizes of updates, the first after the warm-up.

    They follow the learning rate up there, and are even until the first layers begin to learn and noisy ever after: what they
    did before is no measure of what they do then. A value that is not finite is one at any step.
    """
    muted = logarithmic(detector.signal) and not isinstance(detector, NonFiniteRule)
    return warmup_steps + 1 if muted else 0


def falls(signal: str) -> bool:
    """Whether training lowers the signal, so that it may not creep up. (TFSD as an objective rises after a cold start.)"""
    return ("loss" in signal or "nll" in signal) and signal != "loss/objective"


def median(values: Floats) -> float:
    """The median of at least one value; several times faster than np.median on arrays as short as those here."""
    half = len(values) // 2
    if len(values) % 2:
        return float(np.partition(values, half)[half])
    parted = np.partition(values, half)
    return float(parted[:half].max() + parted[half]) / 2


class Baseline:
    """The history of a series and what it leads one to expect: points 1 and 2 of the rule. Its attributes are JSON values."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: list[float] = []
        self.errors: list[float] = []
        self.line: list[float] = []
        """Intercept and slope over log(1 + step), once there are enough values."""

    def accept(self, step: int, value: float) -> None:
        """Add a value to the history."""
        if self.line:
            self.errors = [*self.errors[1 - ERRORS :], value - self._forecast(step)]
        self.steps = [*self.steps[1 - LINE :], step]
        self.values = [*self.values[1 - LINE :], value]
        if len(self.values) >= FEWEST:
            self.line = self._fit()

    def expected(self, step: int) -> tuple[float, float] | None:
        """The level expected at ``step`` and the noise's standard deviation around it; None while it is too early to tell."""
        if len(self.errors) < FEWEST:
            return None
        errors = np.asarray(self.errors[-max(MINIMUM_ERRORS, len(self.errors) // 2) :])
        bias = median(errors)
        distance = np.abs(errors - bias)
        mad = MAD_TO_SIGMA * median(distance)
        clipped = np.minimum(distance, CLIP * mad)
        sigma = math.sqrt(float(np.mean(clipped * clipped)))
        level = max(self._forecast(step) + bias, min(self.values[-LOWEST:]))
        return level, sigma * (1 + SMALL_SAMPLE / len(errors))

    def _forecast(self, step: int) -> float:
        intercept, slope = self.line
        return intercept + slope * math.log1p(step)

    def _fit(self) -> list[float]:
        time, values = np.log1p(np.asarray(self.steps, dtype=np.float64)), np.asarray(self.values)
        earlier, later = _pairs(len(values))
        slope = median((values[later] - values[earlier]) / (time[later] - time[earlier]))
        return [median(values - slope * time), slope]


@cache
def _pairs(count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    earlier, later = np.triu_indices(count, 1)
    return earlier, later


class MedianMad(Detector):
    """The rule of this module. A spike is a rise. Where the logarithm is judged, values without one are passed over."""

    name = "median_mad"

    def __init__(self, signal: str) -> None:
        super().__init__(signal)
        self.baseline = Baseline()
        self.evidence = 0.0
        self.held: list[list[Any]] = []
        """Step, value, height and sigmas of the values that have added evidence, while no spike is open."""
        self.inside: list[list[Any]] = []
        """Step and value of the last values since the spike opened."""
        self.back = self.since_peak = 0
        """Values in a row that are back at the level expected; values since the peak."""
        self.lowest: list[Any] = []
        """The lowest level of a loss so far, and its step."""
        self.creep: float | None = None
        """The level expected while the open spike is a creep."""

    def take(self, step: int, value: float) -> list[Event]:
        raw, value = value, judged(self.signal, value)
        if math.isnan(value):
            return []
        expected = self.baseline.expected(step)
        if expected is None:
            self.baseline.accept(step, value)
            return []
        level, sigma = expected
        level = level if self.creep is None else self.creep
        sigma = max(sigma, resolution(self.signal, level, RESOLUTION), TINY)
        height = raw - (math.exp(level) if logarithmic(self.signal) else level)
        candidate = [step, value, height, (value - level) / sigma]
        if self.open is not None:
            return self._inside(candidate)
        self._outside(candidate, sigma)
        if falls(self.signal) and not self.held:
            self._watch_level(step, sigma)
        return []

    def _outside(self, candidate: list[Any], sigma: float) -> None:
        """No spike is open: weigh the evidence of the new value."""
        sigmas = candidate[3]
        self.held.append(candidate)
        self.evidence = max(0.0, self.evidence + min(sigmas - REFERENCE, MOST))
        if self.evidence > DECISION or self._stands_alone(sigmas, sigma):
            for held in self.held:
                self._grow(held)
            self.evidence, self.held = 0.0, []
        elif self.evidence == 0.0:
            for step, value, *_ in self.held:
                self.baseline.accept(step, value)
            self.held = []

    def _stands_alone(self, sigmas: float, sigma: float) -> bool:
        """Whether one value, so many ``sigmas`` up, is too far out for the noise there has been."""
        errors = np.asarray(self.baseline.errors)
        if sigmas <= ALONE_LEAST or len(errors) < NOISE_KNOWN:
            return sigmas > ALONE
        farthest = float(np.abs(errors - median(errors)).max())
        return sigmas > min(ALONE, ALONE_FACTOR * farthest / sigma)

    def _inside(self, candidate: list[Any]) -> list[Event]:
        """A spike is open: it goes on, or is over."""
        self.since_peak += 1
        if candidate[3] > REFERENCE:
            self.back = 0
            self._grow(candidate)
            return self._give_up() if self.since_peak >= LONGEST else []
        self.back += 1
        self.inside.append(candidate[:2])
        return self._end(self.inside[-2:], recovered=True) if self.back == 2 else []

    def _grow(self, candidate: list[Any]) -> None:
        step, value, height, sigmas = candidate
        self._extend(step, height, sigmas)
        if self.open is not None and self.open.peak_step == step:
            self.since_peak = 0
        self.inside = [*self.inside[1 - LINE :], [step, value]]

    def _give_up(self) -> list[Event]:
        """The spike's level has become the usual one: the history begins anew with it."""
        self.baseline, self.lowest = Baseline(), []
        return self._end(self.inside, recovered=False)

    def _end(self, accepted: list[list[Any]], recovered: bool) -> list[Event]:
        for step, value in accepted:
            self.baseline.accept(step, value)
        self.inside, self.back, self.creep = [], 0, None
        return self._close(recovered)

    def _watch_level(self, step: int, sigma: float) -> None:
        """Open a spike when the level of a loss has crept up."""
        if len(self.baseline.values) < LINE:
            return
        level = median(np.asarray(self.baseline.values))
        if not self.lowest or level <= self.lowest[0]:
            self.lowest = [level, step]
        elif level - self.lowest[0] > CREEP * sigma:
            self.creep, since = self.lowest
            self._grow([since + 1, self.baseline.values[-1], level - self.creep, (level - self.creep) / sigma])
            self._grow([step, self.baseline.values[-1], level - self.creep, (level - self.creep) / sigma])

    def suspected_since(self) -> int | None:
        return int(self.held[0][0]) if self.open is None and self.held else super().suspected_since()

    def state(self) -> dict[str, Any]:
        return super().state() | {"baseline": copy.deepcopy(vars(self.baseline))}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Detector:
        detector = super().from_state(state)
        assert isinstance(detector, MedianMad)
        detector.baseline = Baseline()
        vars(detector.baseline).update(copy.deepcopy(state["baseline"]))
        return detector


DETECTORS: dict[str, type[Detector]] = {
    cls.name: cls for cls in (MedianMad, Olmo2, OlmoCore, LlmC, LlmFoundry, LossRatio, StallRule, NonFiniteRule)
}
DEFAULT = MedianMad.name


def make_detector(name: str, signal: str) -> Detector:
    """A detector that has seen nothing yet. Raises KeyError for a name that is not in :data:`DETECTORS`."""
    return DETECTORS[name](signal)


def detector_from_state(state: Mapping[str, Any]) -> Detector:
    """The detector whose :meth:`Detector.state` is ``state``."""
    return DETECTORS[state["detector"]].from_state(state)


def detect(signal: str, steps: Iterable[int], values: Iterable[float], detector: str = DEFAULT) -> list[Event]:
    """All events of a finished series, in the order in which they ended."""
    series = np.fromiter(steps, dtype=np.int64), np.fromiter(values, dtype=np.float64)
    return detect_series(make_detector(detector, signal), *series)


def detect_series(detector: Detector, steps: npt.NDArray[np.int64], values: Floats) -> list[Event]:
    """All events that ``detector`` finds in the values of its signal in a finished run; the default rule is quicker so."""
    if isinstance(detector, MedianMad):
        from .batches import detect_batches

        return detect_batches(detector, steps, values) + detector.finish()
    points = zip(steps.tolist(), values.tolist(), strict=True)
    return detect_rows(detector, ({"step": step, detector.signal: value} for step, value in points))


def detect_rows(detector: Detector, rows: Iterable[Mapping[str, Any]]) -> list[Event]:
    """All events that ``detector`` finds in the rows of a finished run."""
    found = [event for row in rows for event in detector.update(row)]
    return found + detector.finish()

"""Loss spikes by a running median, online and offline by the same code.

The rule (docs/mathematics.md, section 4): a value is in a spike when it exceeds the median of the last ``WINDOW`` accepted
values by more than THRESHOLD x 1.4826 x MAD, and by at least FLOOR x |median|. One-sided. Values inside a spike do not enter
the window, so a plateau is one event. Values that are not finite are another kind of event and are passed over here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

WINDOW = 64
MINIMUM_HISTORY = 32
THRESHOLD = 6.0
FLOOR = 0.05
MAD_TO_SIGMA = 1.4826
"""The standard deviation of normal noise in units of its median absolute deviation."""
LONGEST = 200
"""A spike that has not ended after so many values is closed as not recovered, and its level becomes the new history."""


@dataclass
class Spike:
    """One spike of one signal, in steps; ``height`` in the signal's unit above the median before it, also in noise sigmas."""

    signal: str
    start_step: int
    peak_step: int
    end_step: int
    height: float
    sigmas: float
    recovered: bool = False

    def event(self) -> dict[str, Any]:
        """The fields of the event in events.jsonl."""
        return asdict(self)


class SpikeDetector:
    """Feeds on one signal, value by value; returns each spike when it is over."""

    def __init__(self, signal: str) -> None:
        self.signal = signal
        self.history: list[float] = []
        self.open: Spike | None = None
        self.open_values: list[float] = []

    def update(self, step: int, value: float) -> Spike | None:
        """Take in the value of ``step``; the spike that ended just before it, if one did."""
        if not math.isfinite(value):
            return None
        median, sigma = self._level()
        excess = value - median
        above = len(self.history) >= MINIMUM_HISTORY and excess > max(THRESHOLD * sigma, FLOOR * abs(median))
        if not above:
            self._accept(value)
            return self._close(recovered=True)
        if self.open is None:
            self.open = Spike(self.signal, step, step, step, excess, 0.0)
        self.open_values.append(value)
        self.open.end_step = step
        if excess >= self.open.height:
            self.open.height, self.open.peak_step = excess, step
            self.open.sigmas = excess / sigma if sigma > 0 else 0.0
        if len(self.open_values) < LONGEST:
            return None
        self.history = self.open_values[-WINDOW:]
        return self._close(recovered=False)

    def finish(self) -> Spike | None:
        """At the end of the run: the spike that is still open, as not recovered."""
        return self._close(recovered=False)

    def _level(self) -> tuple[float, float]:
        """Median of the history and the noise's standard deviation around it."""
        if not self.history:
            return 0.0, 0.0
        values = np.asarray(self.history)
        median = float(np.median(values))
        return median, MAD_TO_SIGMA * float(np.median(np.abs(values - median)))

    def _accept(self, value: float) -> None:
        self.history.append(value)
        del self.history[:-WINDOW]

    def _close(self, recovered: bool) -> Spike | None:
        closed, self.open, self.open_values = self.open, None, []
        if closed is not None:
            closed.recovered = recovered
        return closed

    def state(self) -> dict[str, Any]:
        """JSON state from which :meth:`from_state` goes on exactly."""
        opened = None if self.open is None else self.open.event()
        return {"signal": self.signal, "history": self.history, "open": opened, "open_values": self.open_values}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> SpikeDetector:
        """The detector as it was when :meth:`state` was called."""
        detector = cls(state["signal"])
        detector.history, detector.open_values = list(state["history"]), list(state["open_values"])
        detector.open = None if state["open"] is None else Spike(**state["open"])
        return detector


def detect(signal: str, steps: Iterable[int], values: Iterable[float]) -> list[Spike]:
    """All spikes of a finished series."""
    detector = SpikeDetector(signal)
    found = [detector.update(step, value) for step, value in zip(steps, values, strict=True)]
    return [spike for spike in (*found, detector.finish()) if spike is not None]

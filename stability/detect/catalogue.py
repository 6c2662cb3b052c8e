"""All detectors by name, and running one over rows or over a finished series."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .base import DETECTORS, Detector
from .baseline import Floats, logarithmic
from .events import Event
from .median_mad import MedianMad
from .non_finite import NonFiniteRule
from .published import LlmC, LlmFoundry, LossRatio, Olmo2, OlmoCore
from .stall import StallRule

__all__ = [
    "DEFAULT", "DETECTORS", "LlmC", "LlmFoundry", "LossRatio", "MedianMad", "NonFiniteRule", "Olmo2", "OlmoCore", "StallRule",
    "detect", "detect_rows", "detect_series", "detector_from_state", "judged_from", "make_detector",
]  # fmt: skip


def judged_from(detector: Detector, warmup_steps: int) -> int:
    """The first step of a run that ``detector`` sees: for spikes of norms and sizes of updates, the first after the warm-up.

    They follow the learning rate up there, and are even until the first layers begin to learn and noisy ever after: what they
    did before is no measure of what they do then. A value that is not finite is one at any step.
    """
    muted = logarithmic(detector.signal) and not isinstance(detector, NonFiniteRule)
    return warmup_steps + 1 if muted else 0


DEFAULT = MedianMad.kind


def make_detector(name: str, signal: str) -> Detector:
    """A detector that has seen nothing yet. Raises KeyError for a name that is not in :data:`DETECTORS`."""
    detector: Detector = DETECTORS[name](signal)
    return detector


def detector_from_state(state: Mapping[str, Any]) -> Detector:
    """The detector whose :meth:`Detector.state` is ``state``."""
    detector: Detector = DETECTORS[state["detector"]].from_state(state)
    return detector


def detect(signal: str, steps: Iterable[int], values: Iterable[float], detector: str = DEFAULT) -> list[Event]:
    """All events of a finished series, in the order in which they ended."""
    series = np.fromiter(steps, dtype=np.int64), np.fromiter(values, dtype=np.float64)
    return detect_series(make_detector(detector, signal), *series)


def detect_series(detector: Detector, steps: npt.NDArray[np.int64], values: Floats) -> list[Event]:
    """All events that ``detector`` finds in the values of its signal in a finished run; the default rule is quicker so."""
    if isinstance(detector, MedianMad):
        from .finished_series import detect_batches

        return detect_batches(detector, steps, values) + detector.finish()
    points = zip(steps.tolist(), values.tolist(), strict=True)
    return detect_rows(detector, ({"step": step, detector.signal: value} for step, value in points))


def detect_rows(detector: Detector, rows: Iterable[Mapping[str, Any]]) -> list[Event]:
    """All events that ``detector`` finds in the rows of a finished run."""
    found = [event for row in rows for event in detector.update(row)]
    return found + detector.finish()

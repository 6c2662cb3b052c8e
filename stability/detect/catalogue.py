"""All detectors by name, and functions to run one over rows or a finished series."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from record.metrics import SignalKind, kind_of

from .base import DETECTORS, Detector
from .baseline import Floats
from .events import Event
from .finished_rows import Column, detect_levels, detect_saturation, detect_stalls, rows_between
from .level import LevelRule
from .median_mad import MedianMad
from .non_finite import NonFiniteRule
from .published import LlmC, LlmFoundry, LossRatio, Olmo2, OlmoCore
from .saturation import LIMITS, SaturationRule
from .stall import StallRule
from .trainscope import Cusum, Kurtosis

__all__ = [
    "DEFAULT", "DETECTORS", "Cusum", "Kurtosis", "LevelRule", "LlmC", "LlmFoundry", "LossRatio", "MedianMad", "NonFiniteRule",
    "Olmo2", "OlmoCore", "SaturationRule", "StallRule", "detect_columns", "detect_rows", "detect_series", "detector_from_state",
    "judged_from", "make_detector",
]  # fmt: skip


def judged_from(detector: Detector, warmup_steps: int) -> int:
    """The first step that ``detector`` judges: for spikes of norms and update sizes, the first after warm-up.

    They grow with the learning rate and are smooth until the first layers begin to learn, so the early noise is no measure
    of the later noise. A non-finite value counts at any step.
    """
    muted = detector.signal_kind == "norm" and not isinstance(detector, NonFiniteRule)
    return warmup_steps + 1 if muted else 0


DEFAULT = MedianMad.kind


def make_detector(name: str, signal: str, signal_kind: SignalKind | None = None) -> Detector:
    """A new detector. Raises KeyError for a name that is not in :data:`DETECTORS`. ``signal_kind``: as declared by
    default; a plug-in's rule need not take another."""
    declared = signal_kind in (None, kind_of(signal))
    detector: Detector = DETECTORS[name](signal) if declared else DETECTORS[name](signal, signal_kind)
    return detector


def detector_from_state(state: Mapping[str, Any]) -> Detector:
    """Restore a detector from its :meth:`Detector.state`."""
    detector: Detector = DETECTORS[state["detector"]].from_state(state)
    return detector


def detect_series(detector: Detector, steps: npt.NDArray[np.int64], values: Floats) -> list[Event]:
    """All events of ``detector`` in a finished series of its signal; faster for the default rule."""
    if isinstance(detector, MedianMad):
        from .finished_series import detect_batches

        return detect_batches(detector, steps, values) + detector.finish()
    return detect_columns(detector, steps, {detector.signal: (values, np.ones(len(values), dtype=bool))})


def detect_columns(detector: Detector, steps: npt.NDArray[np.int64], columns: Mapping[str, Column]) -> list[Event]:
    """All events of a new ``detector`` in a finished run, of which ``columns`` has its signal and all that it reads besides."""
    if type(detector) is LevelRule:
        return detect_levels(detector, steps, columns[detector.signal][0])
    if type(detector) is SaturationRule and detector.signal in LIMITS:
        return detect_saturation(detector, steps, columns)
    if type(detector) is StallRule:
        return detect_stalls(detector, steps, columns)
    return detect_rows(detector, rows_between(steps, columns, 0, len(steps)))


def detect_rows(detector: Detector, rows: Iterable[Mapping[str, Any]]) -> list[Event]:
    """All events of ``detector`` in the rows of a finished run."""
    found = [event for row in rows for event in detector.update(row)]
    return found + detector.finish()

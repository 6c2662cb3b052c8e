"""What a detector finds in a series, for the tests of the rules."""

from collections.abc import Iterable

import numpy as np

from record.metrics import SignalKind
from stability.detect.catalogue import DEFAULT, detect_series, make_detector
from stability.detect.events import Event


def detect(
    signal: str, steps: Iterable[int], values: Iterable[float], detector: str = DEFAULT, kind: SignalKind | None = None
) -> list[Event]:
    """All events of a finished series, in the order in which they ended."""
    series = np.fromiter(steps, dtype=np.int64), np.fromiter(values, dtype=np.float64)
    return detect_series(make_detector(detector, signal, kind), *series)

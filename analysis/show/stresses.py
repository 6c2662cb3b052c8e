"""When the stresses of a run's configuration acted, as its log tells."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .text import first_of

ACTING = "stress/acting"
_SPANS = 5
"""Most spans that a line names."""
Spans = list[tuple[int, int]]
"""First and last step of each stretch."""


def spans(steps: npt.NDArray[Any], acting: npt.NDArray[np.float64]) -> Spans:
    """The stretches of logged ``steps`` at which any stress acted. ``acting``: how many did."""
    on = np.flatnonzero(acting > 0)
    stretches = np.split(on, np.flatnonzero(np.diff(on) > 1) + 1) if on.size else []
    return [(int(steps[stretch[0]]), int(steps[stretch[-1]])) for stretch in stretches]


def within(found: Spans, first: int, last: int) -> Spans:
    """Those of the spans that reach into the steps from ``first`` to ``last``."""
    return [span for span in found if span[0] <= last and span[1] >= first]


def words(found: Spans) -> str:
    """The spans in words: "steps 80 to 81, 90"."""
    named = [f"{first}" if first == last else f"{first} to {last}" for first, last in found]
    return f"step{'' if len(found) == 1 and found[0][0] == found[0][1] else 's'} {first_of(named, _SPANS)}"

"""Thinning lines that have more points than a figure has pixels, without losing spikes or gaps.

Averaging would hide a spike, and taking every n-th point would find it only by chance. So a line keeps the lowest and the highest
value of each stretch, at their places, and one value that is not finite, where the line breaks.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

MAX_POINTS = 4000
"""Points of a line: more than two per pixel of a panel's width."""
_KEPT = 3
"""Points kept per stretch."""


def envelope(values: Floats, max_points: int = MAX_POINTS) -> Indices:
    """Indices to draw, ascending, at most ``max_points`` (at least 3): all of a short series, otherwise, of each of the
    :func:`stretches`, the first lowest, the first highest and the first non-finite value."""
    count = len(values)
    if count <= max_points:
        return np.arange(count)
    starts = stretches(count, max_points // _KEPT)
    finite = np.isfinite(values)

    def extreme(reduce: np.ufunc, fill: float) -> Indices:
        of_stretch = reduce.reduceat(np.where(finite, values, fill), starts)
        return _first(finite & (values == np.repeat(of_stretch, np.diff(starts, append=count))), starts)

    kept = [extreme(np.minimum, np.inf), extreme(np.maximum, -np.inf), _first(~finite, starts)]
    return np.unique(np.concatenate(kept))


def stretches(count: int, number: int) -> Indices:
    """First indices of ``number`` stretches of ``count`` values, whose lengths differ by at most one."""
    return np.arange(number) * count // number


def thin_marks(places: Floats, max_points: int = MAX_POINTS) -> Floats:
    """Ascending positions of equal marks, thinned: of those that would overlap, the first stays."""
    if len(places) <= max_points:
        return places
    width = (places[-1] - places[0]) / max_points
    return places[np.unique((places - places[0]) // width, return_index=True)[1]]


def _first(hit: npt.NDArray[np.bool_], starts: Indices) -> Indices:
    """The first index of each stretch at which ``hit`` holds, for the stretches that have one."""
    hits = np.flatnonzero(hit)
    return hits[np.unique(np.searchsorted(starts, hits, side="right"), return_index=True)[1]]

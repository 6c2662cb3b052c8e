"""Fewer points for lines that have more of them than a figure has pixels, without losing what one looks for in it.

An average hides a spike and every n-th point hits it by chance. So of each stretch of a series the lowest and the highest value
stay, where they are, and a point that is not finite, at which the line breaks.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

MAX_POINTS = 4000
"""Points of a drawn line: more than two for each pixel that a panel is wide."""
_KEPT = 3
"""Points that stay of a stretch: its lowest, its highest, and one that is not finite."""


def envelope(values: Floats, max_points: int = MAX_POINTS) -> Indices:
    """Indices to draw, ascending, at most ``max_points`` (at least 3): all of a short series.

    Of a longer one, the first lowest, first highest and first non-finite value of each of the :func:`stretches`.
    """
    count = len(values)
    if count <= max_points:
        return np.arange(count)
    starts = stretches(count, max_points // _KEPT)
    finite = np.isfinite(values)
    lowest = _first(values == _spread(np.minimum, np.where(finite, values, np.inf), starts), finite, starts)
    highest = _first(values == _spread(np.maximum, np.where(finite, values, -np.inf), starts), finite, starts)
    broken = _first(~finite, np.ones(count, dtype=bool), starts)
    return np.unique(np.concatenate([lowest, highest, broken]))


def stretches(count: int, number: int) -> Indices:
    """Where each of ``number`` stretches of ``count`` values begins; their lengths differ by one at most."""
    return np.arange(number) * count // number


def crosses(places: Floats, max_points: int = MAX_POINTS) -> Floats:
    """Ascending positions of marks of one kind, thinned: of those that would lie on each other the first one stays."""
    if len(places) <= max_points:
        return places
    width = (places[-1] - places[0]) / max_points
    return places[np.unique((places - places[0]) // width, return_index=True)[1]]


def _spread(extreme: np.ufunc, values: Floats, starts: Indices) -> Floats:
    """The extreme value of its stretch, for each value."""
    found: Floats = np.repeat(extreme.reduceat(values, starts), np.diff(starts, append=len(values)))
    return found


def _first(hit: npt.NDArray[np.bool_], allowed: npt.NDArray[np.bool_], starts: Indices) -> Indices:
    """The first index of each stretch at which both hold, of the stretches that have one."""
    hits = np.flatnonzero(hit & allowed)
    stretch = np.searchsorted(starts, hits, side="right")
    return hits[np.unique(stretch, return_index=True)[1]]

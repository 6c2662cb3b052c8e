"""Measures between two models: which models are compared with which.

Each model is held against the first arm's model of the same seed (one of the first arm itself: against its next seed, which
shows how far apart seeds are) and, over training, against the last checkpoint of its own run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from .base import Measure, Probe
from .over_training import Point


def to_first(points: Sequence[Point], point: Point) -> Point | None:
    """The first arm's model that this one is compared with: at the same tokens, if its run has several. A model without a seed
    has the first run's."""
    first = [other for other in points if other.arm == points[0].arm]
    runs = list(dict.fromkeys(other.run for other in first))
    if point.arm == points[0].arm:
        partner = dict(itertools.pairwise(runs)).get(point.run, "")  # no pair twice: the last one has none
    else:
        same = (other.run for other in first if other.member.seed == point.member.seed)
        partner = runs[0] if point.member.seed is None else next(same, "")
    found = [other for other in first if other.run == partner]
    if len(found) > 1:
        found = [other for other in found if other.tokens == point.tokens]
    return found[0] if found and found[0].run != point.run else None


def to_last(points: Sequence[Point], point: Point) -> Point | None:
    """The last checkpoint of the same run; None for that itself."""
    last = [other for other in points if other.run == point.run][-1]
    return None if last is point else last


_PARTNERS: dict[str, tuple[Callable[[Sequence[Point], Point], Point | None], str]] = {
    "to_first": (to_first, "the first arm's model of the same seed (of the first arm: of its next seed)"),
    "to_last": (to_last, "the last checkpoint of the same run"),
}


def partners(points: Sequence[Point]) -> dict[str, tuple[Callable[[Sequence[Point], Point], Point | None], str]]:
    """How a model is compared, by suffix of the measures' keys: with which one, and in words."""
    several = len({point.run for point in points}) < len(points)
    return _PARTNERS if several else {"to_first": _PARTNERS["to_first"]}


def expanded(probe: Probe[Any], points: Sequence[Point]) -> tuple[Measure, ...]:
    """The probe's measures, with those between models once for each partner that these have."""
    return tuple(
        one
        for measure in probe.measures
        for one in (
            [
                replace(measure, key=f"{measure.key}_{suffix}", meaning=f"{measure.meaning}: from {words}")
                for suffix, (_, words) in partners(points).items()
            ]
            if measure.between
            else [measure]
        )
    )

"""This project's rules and those that others published, run over a curve as they would watch a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from record.logs.columns import role_of
from record.metrics import SignalKind, kind_of
from stability.detect.base import Detector
from stability.detect.catalogue import DEFAULT, DETECTORS, detect_series, make_detector
from stability.detect.events import Rise, Spike
from stability.detect.trainscope import Kurtosis

from ..detectors import RULES, WATCHED
from .cases import Curve
from .score import Sighting

NEEDS_ACTIVATIONS = "needs activations (hidden_kurtosis/layer_NN)"


@dataclass(frozen=True)
class Contestant:
    """Something that finds events in a column. ``used``: which part of which package it is."""

    name: str
    used: str
    takes: Callable[[str], str | None]
    """Why it cannot judge a column of this name; None if it can."""
    find: Callable[[Curve], list[Sighting]]


def own() -> list[Contestant]:
    """Each rule of stability/detect alone. What a run is watched by is two of them (:data:`WATCHED`)."""
    names = [DEFAULT, "level", *(name for name in RULES if name not in (WATCHED, DEFAULT))]
    rules = [Contestant(name, f"stability/detect, {name}", _takes(name), _find(name)) for name in names]
    return [
        *rules,
        Contestant(Kurtosis.kind, "stability/detect, kurtosis", lambda column: NEEDS_ACTIVATIONS, _find(Kurtosis.kind)),
    ]


def _takes(rule: str) -> Callable[[str], str | None]:
    def takes(column: str) -> str | None:
        return None if DETECTORS[rule].applies_to(column, _kind(column)) else "for losses only"

    return takes


def _find(rule: str) -> Callable[[Curve], list[Sighting]]:
    return lambda curve: sightings(make_detector(rule, curve.column, _kind(curve.column)), curve)


def _kind(column: str) -> SignalKind:
    role = role_of(column)
    return "scale" if role is None else kind_of(role.metric)


def sightings(detector: Detector, curve: Curve) -> list[Sighting]:
    """The events of a detector in a curve, and when it would have told them."""
    found = detect_series(detector, curve.steps, curve.values)
    return sorted(Sighting(e.start_step, e.opened_step, e.end_step) for e in found if isinstance(e, Rise | Spike))

"""This project's rules and those that others published, run over a curve as they would watch a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stability.detect.base import Detector
from stability.detect.baseline import falls
from stability.detect.catalogue import DEFAULT, make_detector
from stability.detect.events import Event, Rise, Spike
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
        return "for losses only" if rule == "level" and not falls(column) else None

    return takes


def _find(rule: str) -> Callable[[Curve], list[Sighting]]:
    return lambda curve: sightings(make_detector(rule, curve.column), curve)


def sightings(detector: Detector, curve: Curve) -> list[Sighting]:
    """The events of a detector that takes a curve row by row. A spike is opened at the step at which ``detector.open`` becomes
    one, a rise at the one that it names."""
    seen: list[Sighting] = []
    opened: int | None = None
    before = None

    def closed(events: list[Event], step: int) -> None:
        for event in events:
            if isinstance(event, Rise):
                seen.append(Sighting(event.start_step, event.opened_step, event.end_step))
            elif isinstance(event, Spike):
                seen.append(Sighting(event.start_step, step if opened is None else opened, event.end_step))

    for step, value in zip(curve.steps.tolist(), curve.values.tolist(), strict=True):
        closed(detector.update({"step": step, detector.signal: value}), step)
        if detector.open is not before:
            opened = None if detector.open is None else step
            before = detector.open
    closed(detector.finish(), int(curve.steps[-1]))
    return sorted(seen)

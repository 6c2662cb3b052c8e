"""The measure: when a detector decides, which faults it hits, and which of its decisions are false alarms."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from record.metrics import kind_of
from stability.detect.base import Detector
from stability.detect.catalogue import DEFAULT, DETECTORS, detect_series, make_detector
from stability.detect.events import Rise, Spike

from .cases import Case, Fault, Floats, Steps

WATCHED = f"{DEFAULT} and level"
"""What a run is watched by."""
RULES = {WATCHED: (DEFAULT, "level")} | {
    name: (name,) for name in DETECTORS if name not in ("stall", "non_finite", "level", "saturated", "kurtosis")
}
"""Detectors by the name under which they are measured."""
AFTER = 2
"""Values after the end of a fault in which a decision still hits it."""


@dataclass
class Decided:
    """The decisions of one detector in each case, and the seconds that it took."""

    places: list[list[int]]
    seconds: float


@dataclass
class Outcome:
    """The result on all cases: a row per fault, a row per false alarm, seconds, and values seen."""

    faults: pd.DataFrame
    alarms: pd.DataFrame
    seconds: float
    values: int


def decisions(detector: Detector, steps: Steps, values: Floats) -> list[int]:
    """The values, counted from 1, at which the detector's events open."""
    events = detect_series(detector, steps, values)
    opened = [event.opened_step for event in events if isinstance(event, Spike | Rise)]
    return sorted((np.searchsorted(steps, opened) + 1).tolist())


def decide(name: str, all_cases: Sequence[Case]) -> Decided:
    """Run a detector over all cases; it says nothing of signals that it is not for."""
    began = time.process_time()
    places = [
        decisions(make_detector(name, case.signal), case.steps, case.values)
        if DETECTORS[name].applies_to(case.signal, kind_of(case.signal))
        else []
        for case in all_cases
    ]
    return Decided(places, time.process_time() - began)


def match(faults: list[Fault], decided: list[int]) -> tuple[list[int | None], list[int]]:
    """For each fault the place of the first decision that hits it, or None; and the false alarms."""
    hits: list[int | None] = [None] * len(faults)
    alarms = []
    for place in decided:
        within = [i for i, fault in enumerate(faults) if fault.start <= place <= fault.end + AFTER]
        if not within:
            alarms.append(place)
        elif hits[within[-1]] is None:
            hits[within[-1]] = place
    return hits, alarms


def measure(all_cases: Sequence[Case], rules: Sequence[Decided]) -> Outcome:
    """Score detectors together, as one that decides when any of them does."""
    rows, alarms = [], []
    for index, case in enumerate(all_cases):
        hits, false = match(case.faults, sorted(place for rule in rules for place in rule.places[index]))
        alarms += [{"case": index, "source": case.source, "place": place} for place in false]
        for fault, hit in zip(case.faults, hits, strict=True):
            target = fault.size >= 6 and fault.length >= 2 and fault.kind != "creep"
            delay = np.nan if hit is None else hit - fault.start
            rows.append(
                {"case": index, "source": case.source, "signal": case.signal, "every": case.every, "kind": fault.kind,
                 "size": fault.size, "length": fault.length, "start": fault.start, "rise": fault.rise, "top": fault.top,
                 "target": target, "hit": hit is not None, "delay": delay}
            )  # fmt: skip
    return Outcome(
        pd.DataFrame(rows),
        pd.DataFrame(alarms, columns=["case", "source", "place"]),
        sum(rule.seconds for rule in rules),
        sum(len(case.values) for case in all_cases),
    )


def outcomes(all_cases: Sequence[Case], rules: Mapping[str, tuple[str, ...]]) -> dict[str, Outcome]:
    """The result of each of ``rules``, which are detectors by the name under which they are measured together."""
    decided = {name: decide(name, all_cases) for name in dict.fromkeys(n for names in rules.values() for n in names)}
    return {rule: measure(all_cases, [decided[name] for name in names]) for rule, names in rules.items()}


def quiet_values(case: Case) -> int:
    """Values of a case at which a decision is a false alarm: those outside all faults."""
    inside = np.zeros(len(case.values) + AFTER, dtype=bool)
    for fault in case.faults:
        inside[fault.start - 1 : fault.end + AFTER] = True
    return int((~inside[: len(case.values)]).sum())

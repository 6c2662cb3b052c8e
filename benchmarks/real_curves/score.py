"""The scoring rule: what an event finds, and which events are false alarms.

A sharp spike is found if an event starts from 20 steps before its labelled step to 60 after; a late rise if an event starts, or
is opened, from 2,000 steps before its onset to 5,000 after. Any other event before the late rise, and any event on a healthy
log, is a false alarm. After the late rise nothing is scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from .cases import RISE_AFTER, Above, Count, Curve, TimesMedian

SHARP_BEFORE, SHARP_AFTER = 20, 60
RISE_BEFORE = 2_000


class Sighting(NamedTuple):
    """An event, in steps of the log: ``opened`` is the step at which whoever watched the run heard of it."""

    start: int
    opened: int
    end: int


class Target(NamedTuple):
    """A labelled spike or late rise."""

    late: bool
    step: int

    def found_by(self, seen: Sighting) -> bool:
        """Whether this event finds it."""
        if self.late:
            first, last = self.step - RISE_BEFORE, self.step + RISE_AFTER
            return first <= seen.start <= last or first <= seen.opened <= last
        return self.step - SHARP_BEFORE <= seen.start <= self.step + SHARP_AFTER


@dataclass(frozen=True)
class Score:
    """A contestant's result on one labelled curve."""

    sharp: list[bool]
    """Whether each spike was found."""
    rises: list[bool]
    delay: int | None
    """Steps from the onset of the late rise to the first event that finds it; None if there is none."""
    alarms: list[Sighting]


def targets(curve: Curve) -> list[Target]:
    """The labelled spikes that are scored, and the late rise."""
    late = curve.label.late_rise
    sharp = [Target(False, step) for step in sorted(curve.label.sharp) if late is None or step < late]
    return sharp if late is None else [*sharp, Target(True, late)]


def healthy_steps(curve: Curve) -> int:
    """Steps of a labelled curve at which an event that begins is a false alarm: up to the window of the late rise, without
    those of the sharp spikes."""
    late = curve.label.late_rise
    first = int(curve.steps[0])
    end = int(curve.steps[-1]) + 1 if late is None else late - RISE_BEFORE
    inside = {
        step
        for target in targets(curve)
        if not target.late
        for step in range(max(first, target.step - SHARP_BEFORE), min(end, target.step + SHARP_AFTER + 1))
    }
    return max(end - first - len(inside), 0)


def score(curve: Curve, seen: Sequence[Sighting]) -> Score:
    """Judge a contestant's events on a labelled curve."""
    wanted, late = targets(curve), curve.label.late_rise
    found = {target: [s for s in seen if target.found_by(s)] for target in wanted}
    hits = {s for group in found.values() for s in group}
    alarms = [s for s in seen if s not in hits and (late is None or s.start < late)]
    heard = [s.opened for target, group in found.items() if target.late for s in group]
    return Score(
        sharp=[bool(found[target]) for target in wanted if not target.late],
        rises=[bool(found[target]) for target in wanted if target.late],
        delay=min(heard) - late if heard and late is not None else None,
        alarms=alarms,
    )


@dataclass(frozen=True)
class NotedScore:
    """A contestant's result on a column that is scored by its note. ``others``: events that cover no value to be covered."""

    wanted: int
    found: int
    others: int | None


def score_noted(curve: Curve, seen: Sequence[Sighting]) -> NotedScore:
    """Judge a contestant's events on a column with a rule from its note."""
    if isinstance(curve.rule, Count):
        return NotedScore(curve.rule.number, len(seen), None)
    steps, judged = to_cover(curve)
    found = sum(any(s.start <= step <= s.end for s in seen) for step in steps)
    within = [s for s in seen if judged[0] <= s.start <= judged[1]]
    others = sum(not any(s.start <= step <= s.end for step in steps) for s in within)
    return NotedScore(len(steps), found, others)


def to_cover(curve: Curve) -> tuple[list[int], tuple[int, int]]:
    """The steps whose values an event has to cover, and the first and last step that the rule judges."""
    if isinstance(curve.rule, Above):
        return curve.steps[curve.values > curve.rule.limit].tolist(), (int(curve.steps[0]), int(curve.steps[-1]))
    if not isinstance(curve.rule, TimesMedian):
        raise TypeError(f"{curve.name}, {curve.column}: no values to cover")
    usual = pd.Series(curve.values).rolling(curve.rule.window, center=True).median().to_numpy()
    judged = curve.steps[np.isfinite(usual)]
    if not len(judged):
        return [], (0, -1)
    return curve.steps[curve.values >= curve.rule.factor * usual].tolist(), (int(judged[0]), int(judged[-1]))

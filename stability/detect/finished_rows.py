"""Further rules over a finished run: the same events as row by row, but rows at which nothing can happen are passed over.

Each rule has a state in which most rows of a run leave it. Which rows could change it is found for all at once, and only these
are given to the rule itself, with the rows before that it still remembers.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .baseline import Floats
from .events import Event
from .level import LENGTHS, LevelRule
from .saturation import LIMITS, SaturationRule
from .stall import ATTENTION, GROWTH, SATURATED, SPAN, StallRule

Steps = npt.NDArray[np.int64]
Column = tuple[Floats, npt.NDArray[np.bool_]]
"""A metric's values at all steps, and the mask of the steps at which it was written."""

GROUP = 25
"""Values of the loss for which it is decided together whether they may be part of a stall."""
SAFE = 0.999
"""Share of the growth at which rows are looked at, so that no rounding matters."""


def rows_between(steps: Steps, columns: Mapping[str, Column], first: int, end: int) -> Iterator[dict[str, Any]]:
    """The rows from the place ``first`` to before ``end``, with what was written at each."""
    part = slice(first, end)
    lists = {name: (values[part].tolist(), written[part].tolist()) for name, (values, written) in columns.items()}
    for place, step in enumerate(steps[part].tolist()):
        yield {"step": step} | {name: values[place] for name, (values, written) in lists.items() if written[place]}


def detect_levels(rule: LevelRule, steps: Steps, values: Floats) -> list[Event]:
    """The rises in a series: a new rule looks at whole blocks only."""
    finite, length = np.isfinite(values), LENGTHS[0]
    count = int(finite.sum()) // length
    steps_nk = steps[finite][: count * length].reshape(count, length)
    ordered_nk = np.sort(values[finite][: count * length].reshape(count, length), axis=1)
    medians = (ordered_nk[:, length // 2 - 1] + ordered_nk[:, length // 2]) / 2
    ends = zip(steps_nk[:, 0].tolist(), steps_nk[:, -1].tolist(), medians.tolist(), strict=True)
    return [event for block in ends for event in rule.take_block(list(block))]


def detect_saturation(rule: SaturationRule, steps: Steps, columns: Mapping[str, Column]) -> list[Event]:
    """The saturations in a metric and its layers: a new rule that counts nothing waits for a value beyond its mark."""
    sign = LIMITS[rule.signal].sign
    signed = [np.where(written & np.isfinite(values), sign * values, np.nan) for values, written in columns.values()]
    worst = np.fmax.reduce(signed)
    places = np.flatnonzero(columns[rule.signal][1] & ~np.isnan(worst)).tolist()

    def taken(number: int) -> list[Event]:
        (row,) = rows_between(steps, columns, places[number], places[number] + 1)
        return rule.update(row)

    found = taken(0) if places else []  # which sets the marks
    beyond = {state: worst[places] > sign * rule.mark(state) for state in (False, True)} if places else {}
    changes = {state: np.flatnonzero(mask != state) for state, mask in beyond.items()}
    number = 1
    while number < len(places):
        if not rule.count:
            later = changes[rule.saturated]
            following = int(np.searchsorted(later, number))
            if following == len(later):
                break
            number = int(later[following])
        found += taken(number)
        number += 1
    return found


def detect_stalls(rule: StallRule, steps: Steps, columns: Mapping[str, Column]) -> list[Event]:
    """The stalls of a loss beside logits: a new rule need not see losses over whose span no logits grew or were saturated."""
    loss, written = columns[rule.signal]
    at = np.flatnonzero(written & np.isfinite(loss))
    begins = np.arange(SPAN - 1, len(at), GROUP)
    ends = np.minimum(begins + GROUP, len(at))
    logits = {name: column for name, column in columns.items() if name != rule.signal}
    groups = np.flatnonzero(_may_stall(logits, at[begins - SPAN + 1], at[ends - 1] + 1))
    found: list[Event] = []
    taken = 0
    for stretch in np.split(groups, np.flatnonzero(np.diff(groups) > 1) + 1) if groups.size else []:
        begin, end = int(begins[stretch[0]]), int(ends[stretch[-1]])
        quiet = rule.quiet + begin - taken
        rule = StallRule(rule.signal, rule.signal_kind)
        for row in rows_between(steps, columns, int(at[begin - SPAN + 1]), int(at[begin])):
            rule.update(row)
        rule.quiet, taken = quiet, end
        for row in rows_between(steps, columns, int(at[begin]), int(at[end - 1]) + 1):
            found += rule.update(row)
    return found


def _may_stall(logits: Mapping[str, Column], begins: Steps, ends: Steps) -> npt.NDArray[np.bool_]:
    """For stretches of rows, whether any logits in one have grown enough from their lowest to their highest value, between which
    all medians lie, or are saturated."""
    may = np.zeros(len(begins), dtype=bool)
    bounds = np.stack([begins, ends], axis=1).ravel()
    for name, (values, written) in logits.items() if len(begins) else ():
        there = written & np.isfinite(values)
        low = np.minimum.reduceat(np.append(np.where(there, values, np.inf), np.inf), bounds)[::2]
        high = np.maximum.reduceat(np.append(np.where(there, values, -np.inf), -np.inf), bounds)[::2]
        may |= (high > 0) & ((low <= 0) | (high >= SAFE * GROWTH * low))
        if name == ATTENTION:
            may |= high > SATURATED
    return may

"""Spikes of a loss without noise, and by how many steps a signal was ahead of them. S steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.compare.statistics import Effect, mean_over_seeds

from .base import Row, Seed

Floats = npt.NDArray[np.float64]
Marks = npt.NDArray[np.bool_]

FIRST = 20
"""Steps from the start, in which a signal has no past to be compared with."""
BEGINS, COUNTS = 2.0, 4.0
"""A spike begins where the loss is this multiple of its lowest value so far, and counts if it reaches that one."""
PAST = 20
"""Steps before one whose lowest value a signal is compared with."""
EARLY, LATE = 20, 5
"""Steps before and after a spike's first in which a signal's departure belongs to it."""
FEWEST, FEWEST_SEEDS = 3, 3
"""Spikes of all seeds together, and seeds with spikes, below which nothing is said."""


@dataclass(frozen=True)
class Spike:
    """Indices of a spike's first value, and of its highest."""

    start: int
    peak: int


def column(rows: Mapping[str, Sequence[float | None]], name: str) -> Floats:
    """A metric of all steps; NaN where a row has none."""
    return np.array([math.nan if value is None else value for value in rows[name]], dtype=np.float64)


def spikes(loss_S: Floats) -> list[Spike]:
    """The spikes of a loss above 0. One is over where the loss is half of the way back, on a logarithmic scale, from its peak to
    where it rose from; what is lowest is then learnt anew."""
    found, lowest, start, peak = [], math.inf, None, 0
    for step, loss in enumerate(loss_S):
        if start is None:
            if step >= FIRST and loss > BEGINS * lowest:
                start = peak = step
            else:
                lowest = min(lowest, loss)
            continue
        peak = step if loss > loss_S[peak] else peak
        if loss < math.sqrt(lowest * loss_S[peak]):
            if loss_S[peak] >= COUNTS * lowest:
                found.append(Spike(start, peak))
            lowest, start = loss, None
    if start is not None and loss_S[peak] >= COUNTS * lowest:
        found.append(Spike(start, peak))
    return found


def doubled(signal_S: Floats, factor: float = BEGINS) -> Marks:
    """The steps at which a positive signal is above ``factor`` times its lowest of the PAST steps before."""
    marks = np.zeros(len(signal_S), dtype=bool)
    for step in range(FIRST, len(signal_S)):
        past = signal_S[max(0, step - PAST) : step]
        past = past[np.isfinite(past)]
        marks[step] = len(past) > 0 and signal_S[step] > factor * past.min()
    return marks


def lead(marks_S: Marks, spike: Spike) -> int | None:
    """Steps from the first marked step to the spike's first, negative if it comes later; None if there is none nearby."""
    first = max(0, spike.start - EARLY)
    near = np.flatnonzero(marks_S[first : spike.start + LATE + 1])
    return spike.start - (first + int(near[0])) if len(near) else None


@dataclass(frozen=True)
class Led:
    """What a signal did before the spikes of one arm, over seeds."""

    spikes: int
    leads: list[int]
    """Of the spikes with a departure nearby, all seeds together."""
    mean: Effect
    """Mean lead of a seed, over the seeds that have one."""
    share: Effect
    """Share of a seed's spikes with a lead from ``least`` to ``most``."""
    above_chance: Effect
    """That share minus the share of all steps that such a departure precedes."""


def led(
    seeds: Sequence[Seed],
    arms: Sequence[str],
    marks: Callable[[Mapping[str, Any]], Marks],
    least: int = 1,
    most: int = EARLY,
) -> Led:
    """How a signal, as the steps that ``marks`` makes of a run's columns, was ahead of the spikes of these arms together.

    The chance of a step is that of a marked step from ``most`` to ``least`` steps before it, if there is one at all.
    """
    every: list[int] = []
    means, shares, above, count = [], [], [], 0
    for seed in seeds:
        own, hits, chances, total = [], 0, [], 0
        for arm in arms:
            rows = seed.measured[arm]
            marks_S = marks(rows)
            for spike in spikes(column(rows, "loss/nll")):
                total += 1
                if (found := lead(marks_S, spike)) is not None:
                    own.append(found)
                    hits += least <= found <= most
            for step in range(FIRST + most, len(marks_S)):
                chances.append(bool(marks_S[step - most : step - least + 1].any()))
        count, every = count + total, every + own
        if own:
            means.append(float(np.mean(own)))
        if total:
            shares.append(hits / total)
            above.append(hits / total - float(np.mean(chances)))
    return Led(count, every, mean_over_seeds(means), mean_over_seeds(shares), mean_over_seeds(above))


def too_few(of: Led) -> bool:
    """Whether nothing can be said from these spikes.

    Changed after the first look: at first only the spikes were counted, and six of them, of two seeds, were enough. An interval
    over two seeds contains whatever is asked of it, so that A8, A25 and A27 were "not reproduced" by lack of seeds alone.
    """
    return of.spikes < FEWEST or of.share.n < FEWEST_SEEDS


def row(first: str, name: str, of: Led) -> Row:
    """The row of a table, whose first heading is ``first``."""
    quartiles = ", ".join(f"{q:.0f}" for q in np.percentile(of.leads, [25, 50, 75])) if of.leads else ""
    return {
        first: name,
        "spikes": f"{of.spikes}",
        "with a departure nearby": f"{len(of.leads)}",
        "lead in steps: quartiles": quartiles,
        "mean over seeds [95%]": of.mean.format("+.1f") if of.leads else "",
        "share that it leads": f"{of.share.mean:.2f}" if of.spikes else "",
        "above chance [95%]": of.above_chance.format("+.2f") if of.spikes else "",
    }


def ahead(of: Led) -> str:
    """The mean lead for a sentence."""
    return f"{of.mean.format('+.1f')} steps" if of.leads else "none nearby"

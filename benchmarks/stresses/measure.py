"""What a fault did to a run, held against a run without it, step by step. Pure functions of curves; S steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.stability.curve import Floats, moving_median

SIGMAS = 2.0
"""Noise within which it is back."""
LATE = 20
"""Steps after a stress in which an event still counts as having found it."""
USUAL = 32
"""Steps before a fault whose median gradient norm is the usual one."""


@dataclass(frozen=True)
class Damage:
    """The difference of a run from its calm partner, from the first step of the fault on. NLLs in nats per token."""

    height: float
    """Highest difference of the NLL."""
    height_after: float
    """Highest after the last step of the stress, of the model then, where a stress changes the text; NaN if the run ended."""
    back: int | None
    """Steps from the onset until the moving median is back for good; None: not by the end."""
    excess: float
    """Sum of the differences over the steps, in nat-steps."""
    excess_after: float
    """The part of it after the last step of the stress."""
    ended: bool
    """Whether the run ended early."""


@dataclass(frozen=True)
class Found:
    """An event that tells of a fault."""

    signal: str
    kind: str
    delay: int
    """Steps from the onset to the first value that showed it."""


def damage(nll_S: Floats, calm_S: Floats, acting: int, sigma: float) -> Damage:
    """Both curves from the fault's first step on, which acts for ``acting`` steps. A run that ended early has a shorter one, is
    never back, and what is not finite is infinitely high."""
    difference_S = np.nan_to_num(nll_S, nan=np.inf, posinf=np.inf) - calm_S[: len(nll_S)]
    after_S = difference_S[acting:]
    out = np.flatnonzero(moving_median(difference_S) > SIGMAS * sigma)
    back = int(out[-1]) + 1 if len(out) else 0
    return Damage(
        height=float(difference_S.max()),
        height_after=float(after_S.max()) if len(after_S) else np.nan,
        back=back if len(nll_S) == len(calm_S) and back < len(calm_S) else None,
        excess=float(difference_S.sum()),
        excess_after=float(after_S.sum()),
        ended=len(nll_S) < len(calm_S),
    )


def found(events: Sequence[Mapping[str, Any]], calm: Sequence[Mapping[str, Any]], fault: int, last: int) -> list[Found]:
    """The first event of each signal that opened at ``fault`` or later and overlaps ``fault`` to ``last``, the last step of the
    stress, or the steps soon after; the earliest first. What the calm run has too does not count."""
    known = {_identity(event) for event in calm if event["event"] in FINDING}
    first: dict[str, Found] = {}
    for event in events:
        if event["event"] not in FINDING or (told := _identity(event)) in known:
            continue
        signal, start, opened, end = told
        in_time = fault <= opened and fault <= end and start <= last + LATE
        if in_time and (signal not in first or opened - fault < first[signal].delay):
            first[signal] = Found(signal, event["event"].removesuffix("_opened"), opened - fault)
    return sorted(first.values(), key=lambda one: one.delay)


FINDING = ("spike", "spike_opened", "rise", "stall", "saturated", "non_finite", "rewind")
"""Events of a run's watch that tell of an instability. After a rewind, the event of the spike that it took back is gone."""


def _identity(event: Mapping[str, Any]) -> tuple[str, int, int, int]:
    """Signal, first step, the one that showed it, and the last. A stall shows at its end; the end of a run names one step;
    of a rewind it is the spike that caused it."""
    event = {"event": event["event"], **event.get("cause", event)}
    start = event.get("start_step", event.get("step", 0))
    end = event.get("end_step", event.get("opened_step", start))
    opened = event.get("opened_step", end if event["event"] == "stall" else start)
    names = [event.get("signal"), *event.get("tensors", ()), *event.get("signals", ())]
    return next((name for name in names if name), "a value"), start, opened, end

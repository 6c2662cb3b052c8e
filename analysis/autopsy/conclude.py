"""From what the experiments made of a spike to its cause."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .experiments import ATTENTION, DATA, HARDWARE, NUMERICS, OUTPUT, RATE, STATE, UNDECIDED

REMOVED = 0.75
"""Share of the spike that must be gone for a change to count as having removed it."""
UNUSUAL = 5.0
"""Sigmas by which a batch's loss at the weights before the spike, or the size of the logits, must stand out to be unusual."""
SIGN_LIKE = 0.5
"""Share of parameters that Adam moves as far as it ever does, from which on its moments have lost their history."""


@dataclass(frozen=True)
class Level:
    """What was usual before: the median, and the noise as 1.4826 times the median absolute deviation."""

    median: float
    sigma: float

    def excess(self, values: Sequence[float]) -> float:
        """By how much the values are above two sigmas over the median, summed over steps; infinite if one is not finite."""
        if not all(map(math.isfinite, values)):
            return math.inf
        return float(np.clip(np.asarray(values) - self.median - 2 * self.sigma, 0, None).sum())


def level_of(values: Sequence[float]) -> Level:
    """The level of some values before a spike."""
    finite = np.array([v for v in values if math.isfinite(v)])
    median = float(np.median(finite))
    return Level(median, 1.4826 * float(np.median(np.abs(finite - median))))


def removed(factual: float, changed: float) -> float:
    """The share of a spike's excess that a change has removed; negative if it made more of it."""
    if math.isinf(factual):
        return 0.0 if math.isinf(changed) else 1.0
    return -math.inf if math.isinf(changed) else 1 - changed / factual


@dataclass(frozen=True)
class Evidence:
    """What is known about a spike once all experiments are done."""

    reproduced: bool
    """Whether the steps taken again were those of the log, to the bit or within the tolerance."""
    comparable: bool
    """Whether they should have been to the bit: the same device, packages and number of processes."""
    again: float
    """Share of the spike that was gone when nothing was changed."""
    removed: Mapping[str, tuple[str, float]]
    """By experiment: the cause it speaks for, and the share of the spike that it removed."""
    batch_sigmas: float
    """By how much the loss of the spike's batches stood out at the weights before it."""
    logit_sigmas: float
    """By how much the size of the output logits stood out from that of the steps before, up to the spike's start."""
    sign_like: float
    """The largest share of parameters, in a step before the spike, that Adam moved almost as far as it ever does: near 1 where
    its moments hold little but the last gradient."""


@dataclass(frozen=True)
class Conclusion:
    """A cause, and why."""

    cause: str
    reasons: list[str]


def conclude(e: Evidence) -> Conclusion:
    """The cause of a spike. Where two causes explain it equally well, none is named."""
    if e.again >= REMOVED:
        if e.comparable:
            return Conclusion(HARDWARE, ["the same steps, taken again on the same kind of machine, have no spike"])
        return Conclusion(UNDECIDED, ["taken again on another kind of machine, the steps have no spike"])
    by_cause: dict[str, list[str]] = {}
    for name, (cause, share) in e.removed.items():
        if share >= REMOVED and cause:
            by_cause.setdefault(cause, []).append(f"{name}: {100 * share:.0f}% of the spike is gone")
    unusual = e.batch_sigmas >= UNUSUAL
    odd = f"at the weights before it, its batches already had a loss {e.batch_sigmas:.0f} sigmas above the others"
    if DATA in by_cause and unusual:
        return Conclusion(DATA, [*by_cause[DATA], odd])
    if e.sign_like >= SIGN_LIKE and DATA not in by_cause:
        moved = f"before it, Adam moved {100 * e.sign_like:.0f}% of all parameters as far as it ever does"
        return Conclusion(STATE, [*by_cause.get(STATE, []), moved])
    held = [line for line in by_cause.get(RATE, []) if line.startswith("the rate as before")]
    if held:
        return Conclusion(RATE, by_cause[RATE])
    for cause in (NUMERICS, ATTENTION):
        if cause in by_cause and DATA not in by_cause:
            return Conclusion(cause, by_cause[cause])
    if OUTPUT in by_cause and DATA not in by_cause and e.logit_sigmas >= UNUSUAL:
        size = f"before it, the output logits were {e.logit_sigmas:.0f} sigmas from their usual size"
        return Conclusion(OUTPUT, [*by_cause[OUTPUT], size])
    left = [cause for cause in (DATA, OUTPUT, STATE, RATE) if cause in by_cause]
    if len(left) == 1 and left[0] != OUTPUT:
        return Conclusion(left[0], by_cause[left[0]])
    if set(left) == {STATE, RATE} and not unusual:
        return _state_or_rate(e, by_cause)
    reasons = [line for cause in left for line in by_cause[cause]]
    return Conclusion(UNDECIDED, reasons or ["no single change removes it"])


def _state_or_rate(e: Evidence, by_cause: Mapping[str, list[str]]) -> Conclusion:
    """Forgotten moments make small steps, as a lower rate does; only another beta2 as well, or not, tells them apart."""
    others = [share for name, (cause, share) in e.removed.items() if cause == STATE and "beta2" in name]
    if max(others, default=0.0) >= REMOVED:
        return Conclusion(STATE, by_cause[STATE])
    return Conclusion(UNDECIDED, [*by_cause[STATE], *by_cause[RATE]])

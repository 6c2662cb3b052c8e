"""From what the experiments made of a spike to its cause."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .experiments import (
    AS_BEFORE,
    CONTROL,
    DATA,
    HARDWARE,
    HELD,
    HIGHER_BETA2,
    LOWER_BETA2,
    OUTPUT,
    RATE,
    STATE,
    UNDECIDED,
)

REMOVED = 0.75
"""Share of the spike that must be gone for a change to count as having removed it."""
MOSTLY = 0.5
"""Share of the spike that must be left where no weight moves, and gone with other batches, for it to be in its batches."""
UNUSUAL = 5.0
"""Sigmas by which a batch's loss at the weights before the spike, or the size of the logits, must stand out to be unusual."""
SIGN_LIKE = 0.5
"""Share of parameters that Adam moves as far as it ever does, from which on its moments have lost their history."""


@dataclass(frozen=True)
class Level:
    """What was usual before: the median, and the noise as 1.4826 times the median absolute deviation."""

    median: float
    sigma: float
    ceiling: float
    """A value counts for no more than this: of a spike that is far beyond it a change must remove more than most."""

    def excess(self, values: Sequence[float]) -> float:
        """By how much the values are above two sigmas over the median, summed over steps; one that is not finite is at the
        ceiling."""
        array = np.asarray(values, dtype=float)
        array = np.where(np.isfinite(array), np.minimum(array, self.ceiling), self.ceiling)
        return float(np.clip(array - self.median - 2 * self.sigma, 0, None).sum())


def level_of(values: Sequence[float], ceiling: float = math.inf) -> Level:
    """The level of some values before a spike."""
    finite = np.array([v for v in values if math.isfinite(v)])
    median = float(np.median(finite))
    sigma = 1.4826 * float(np.median(np.abs(finite - median)))
    return Level(median, sigma, max(ceiling, median + 20 * sigma))


def removed(factual: float, changed: float) -> float:
    """The share of a spike's excess that a change has removed; negative if it made more of it."""
    return 1 - changed / factual


@dataclass(frozen=True)
class Evidence:
    """What is known about a spike once all experiments are done."""

    differs_from: int | None
    """The first step taken again that was not that of the log, to the bit or within the tolerance; None if all were."""
    agreed: int
    """Steps taken again that were those of the log, before the first that was not."""
    comparable: bool
    """Whether they should have been to the bit: the same device, packages and number of processes."""
    again: float
    """Share of the spike that was gone when nothing was changed."""
    removed: Mapping[str, tuple[str, float]]
    """By experiment: the cause it speaks for, and the share of the spike that it removed."""
    batch_sigmas: float
    """By how much the loss of the spike's batches stood out at the weights before it."""
    logit_sigmas: float
    """By how much the size of the output logits stood out from that of the steps before, before the spike's start."""
    sign_like: float
    """The largest share of parameters, in a step before the spike, that Adam moved almost as far as it ever does: near 1 where
    its moments hold little but the last gradient."""
    sign_like_first: float
    """The same in the window's first step."""


@dataclass(frozen=True)
class Conclusion:
    """A cause, and why."""

    cause: str
    reasons: list[str]


def conclude(e: Evidence) -> Conclusion:
    """The cause of a spike. Where two causes explain it equally well, or the steps were not those of the log, none is named."""
    if (not_the_same := _of_another_run(e)) is not None:
        return not_the_same
    by_cause = _by_cause(e)
    unusual = e.batch_sigmas >= UNUSUAL
    if by_cause.keys() <= {DATA} and (in_the_batches := _in_the_batches(e)):
        return Conclusion(DATA, in_the_batches)
    if DATA in by_cause and unusual:
        odd = f"at the weights before it, its batches already had a loss {e.batch_sigmas:.0f} sigmas above the others"
        return Conclusion(DATA, [*by_cause[DATA], odd])
    if _share(e, CONTROL) >= REMOVED:
        fragile = "weights moved at random, by the length of one update, remove it: what else removes it says little"
        return Conclusion(UNDECIDED, [fragile])
    if _share(e, AS_BEFORE) >= REMOVED:
        return Conclusion(RATE, by_cause[RATE])
    if e.sign_like >= max(SIGN_LIKE, 2 * e.sign_like_first) and by_cause.keys() <= {STATE, RATE}:
        moved = f"before it, Adam suddenly moved {100 * e.sign_like:.0f}% of all parameters as far as it ever does"
        return Conclusion(STATE, [*by_cause.get(STATE, []), moved])
    if set(by_cause) == {STATE, RATE} and not unusual:
        return _state_or_rate(e, by_cause)
    if len(by_cause) == 1:
        return Conclusion(*by_cause.popitem())
    return Conclusion(UNDECIDED, [line for lines in by_cause.values() for line in lines] or _nothing_removes_it(e))


def _share(e: Evidence, experiment: str) -> float:
    """The share of the spike that an experiment removed; 0 if it was not made."""
    return e.removed.get(experiment, ("", 0.0))[1]


def _by_cause(e: Evidence) -> dict[str, list[str]]:
    """The experiments that removed the spike, in words, by the cause they speak for."""
    found: dict[str, list[str]] = {}
    for name, (cause, share) in e.removed.items():
        if share >= REMOVED and cause:
            found.setdefault(cause, []).append(f"{name}: {100 * share:.0f}% of the spike is gone")
    if len(found.get(DATA, [])) < sum(cause == DATA for cause, _ in e.removed.values()):
        found.pop(DATA, None)  # with some other batches it comes all the same
    if e.logit_sigmas < UNUSUAL:
        found.pop(OUTPUT, None)  # so strong a penalty changes the gradient of any step
    return found


def _in_the_batches(e: Evidence) -> list[str]:
    """Why the spike must be in its batches; empty if it need not be. Between steps without updates only the batches differ."""
    others = [share for cause, share in e.removed.values() if cause == DATA]
    if HELD not in e.removed or _share(e, HELD) > MOSTLY or min(others, default=0.0) < MOSTLY:
        return []
    return [
        f"with the weights held still, {100 * min(1.0, 1 - _share(e, HELD)):.0f}% of the spike is left",
        f"with other batches, {100 * min(others):.0f}% of it or more is gone",
    ]


def _nothing_removes_it(e: Evidence) -> list[str]:
    """What can be said all the same."""
    reasons = ["no single change that speaks for a cause removes it"]
    for name, (cause, share) in e.removed.items():
        if cause == OUTPUT and share >= REMOVED:
            reasons = [f"{name} removes it, but the logits were of their usual size before, so it does not count"]
    if HELD in e.removed:
        gone = _share(e, HELD) >= REMOVED
        reasons.append(f"with the weights held still there is {'none: the updates make it' if gone else 'one, too'}")
    return reasons


def _of_another_run(e: Evidence) -> Conclusion | None:
    """The conclusion where the steps taken again are not those of the log."""
    if e.differs_from is None:
        return None
    if not e.agreed:
        return Conclusion(
            UNDECIDED, [f"the replay differs from the log from step {e.differs_from} on: it is not this run"]
        )
    if e.again >= REMOVED and e.comparable:
        return Conclusion(HARDWARE, ["the same steps, taken again on the same kind of machine, have no spike"])
    if e.again >= REMOVED:
        return Conclusion(UNDECIDED, ["taken again on another kind of machine, the steps have no spike"])
    return Conclusion(UNDECIDED, [f"the steps taken again differ from the log from step {e.differs_from} on"])


def _state_or_rate(e: Evidence, by_cause: Mapping[str, list[str]]) -> Conclusion:
    """Forgotten moments make small steps, as a lower rate does. Only a lower beta2 as well tells them apart, and not where a
    higher one does the same."""
    if _share(e, LOWER_BETA2) >= REMOVED > _share(e, HIGHER_BETA2):
        return Conclusion(STATE, by_cause[STATE])
    return Conclusion(UNDECIDED, [*by_cause[STATE], *by_cause[RATE]])

"""What the rules of judgement read from runs: losses at the end, events, differences over seeds. Pure functions of what a run has
written."""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis.compare.statistics import Effect, mean_over_seeds
from record.finished import Run

from . import intervals

NLL, VALIDATION = "loss/nll", "validation/nll"
AMONG_LAST = 20
"""Steps whose mean is a training loss at the end."""


def validation_nll(run: Run) -> float:
    """Validation NLL of the last step; that of guessing blindly, log V, at most, and for a run that has ended early."""
    blind = math.log(run.config["data"]["vocab_size"])
    value = run.value(VALIDATION, run.config["train"]["steps"])
    return min(value, blind) if value is not None and math.isfinite(value) else blind


def spikes_of(run: Run, signal: str, first: int = 1) -> list[int]:
    """First steps of the spike events of a signal that began at ``first`` or later."""
    return [event["start_step"] for event in run.spikes(signal) if event["start_step"] >= first]


def alarms_of(run: Run) -> list[str]:
    """Names of the events of a run that tell of an instability without a spike."""
    return sorted({event["event"] for event in run.events if event["event"] in ("stall", "saturated")})


def over_seeds(values: Sequence[float]) -> Effect:
    """Mean and t interval; of a single seed, or of equal values, the mean alone."""
    return mean_over_seeds(list(values))


def above(effect: Effect, least: float = 0.0) -> bool:
    """Whether the mean reaches ``least`` and the whole interval is above 0."""
    return intervals.above(effect, 0.0) and effect.mean >= least


def below(effect: Effect, most: float = 0.0) -> bool:
    """Whether the mean is ``most`` or less and the whole interval below 0."""
    return intervals.below(effect, 0.0) and effect.mean <= most

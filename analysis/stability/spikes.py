"""Spikes in the recorded series of a run, by the default rule and by each published one."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from record.finished import Run
from stability.detect.catalogue import DEFAULT, detect_series, judged_from, make_detector
from stability.detect.events import Spike

from .curve import Floats, Steps

NLL, GRADIENT = "loss/nll", "grad_norm/total"
SIGNALS = {"nll": NLL, "grad": GRADIENT}
"""Where spikes are counted, by the part of a column's name."""
SILENT = {DEFAULT: 16, "olmo_core": 128, "olmo2": 128, "llmc": 127, "llm_foundry": 100, "loss_ratio": 1, "cusum": 30}
"""The rules, and the values that each needs before it judges one."""
PUBLISHED = tuple(rule for rule in SILENT if rule != DEFAULT)


@dataclass(frozen=True)
class Spikes:
    """What a rule found in a run."""

    found: list[Spike]
    steps: int
    """Values of the run's own that it judged: what it could not judge is no evidence of calm."""

    @property
    def rate(self) -> float | None:
        """Spikes per thousand steps; None if no step was judged."""
        return 1000 * len(self.found) / self.steps if self.steps else None


def find_spikes(
    rule: str,
    signal: str,
    steps: Steps,
    values: Floats,
    *,
    own_from: int,
    warmup_steps: int,
    known: list[Spike] | None = None,
) -> Spikes:
    """The spikes that ``rule`` finds in a series of which the run's own steps begin at ``own_from``; what is before them only
    tells the rule what is usual. ``known``: what it has found already."""
    detector = make_detector(rule, signal)
    judged = steps >= judged_from(detector, warmup_steps)
    steps, values = steps[judged], values[judged]
    if known is None:
        known = [e for e in detect_series(detector, steps, values) if isinstance(e, Spike)] if len(steps) else []
    finite = steps[np.isfinite(values)]
    judged_steps = int((finite[SILENT[rule] :] >= own_from).sum())
    return Spikes([spike for spike in known if spike.peak_step >= own_from], judged_steps)


def told(run: Run, signal: str) -> list[Spike] | None:
    """The spikes that the run's own watch has found by the default rule, which are those that it would find again; None if the
    run was watched by another rule, or not for this signal."""
    if run.setting("detection", "detector") != DEFAULT or signal not in (run.setting("detection", "signals") or ()):
        return None
    kept = [event for event in run.spikes(signal) if "abandoned" not in event]
    return [_spike({"opened_step": event["start_step"], "recovered": False} | event) for event in kept]


def _spike(event: dict[str, Any]) -> Spike:
    values: dict[str, Any] = {field.name: event[field.name] for field in fields(Spike) if field.name in event}
    return Spike(**{"detector": DEFAULT, **values})

"""A9: Adam makes a spike on a parabola, whose curvature never changes, because v forgets the large gradients of the start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from analysis.step.curvature import threshold

from .base import Finding, Outcome, Seed, Verdict, finding

BETA1, EPS = 0.9, 1e-8
ARMS = ((1e-2, 0.95, 2_000), (1e-2, 0.99, 5_000), (1e-2, 0.999, 20_000), (1e-3, 0.999, 20_000))
"""Learning rate, beta2 and steps. At the last one the gradient does not get small enough."""
RISE = 100.0
"""Factor by which the loss must rise to be called a spike."""
WINDOW = 100
"""Losses of which only the highest counts when it is asked whether they rose, so that swinging through 0 is no rise."""


@dataclass(frozen=True)
class Parabola:
    """What Adam did to x from x = 1 on the loss x^2 / 2."""

    lr: float
    beta2: float
    steps: int
    crossing: int | None
    """Steps taken when 1 / (sqrt(v) + eps) first exceeds the threshold; None: never."""
    decay: float
    """v there over v one step before, v without bias correction: beta2 if the gradient adds nothing to it."""
    risen_before: float
    """:func:`rise` of the losses up to the crossing."""
    at_crossing: float
    """Loss there."""
    peak: float
    """Highest loss after the crossing."""
    peak_after: int
    """Steps from the crossing to the peak."""


def descend(lr: float, beta2: float, steps: int, beta1: float = BETA1, eps: float = EPS) -> Parabola:
    """Adam in float64 with the gradient x. If there is no crossing, what is said of before it is of all steps, and the peak
    is NaN."""
    x, m, v = 1.0, 0.0, 0.0
    losses, sharpness, squares = [], [], [0.0]
    for step in range(1, steps + 1):
        losses.append(x * x / 2)
        m, v = beta1 * m + (1 - beta1) * x, beta2 * v + (1 - beta2) * x * x
        denominator = math.sqrt(v / (1 - beta2**step)) + eps
        sharpness.append(1 / denominator)
        squares.append(v)
        x -= lr * m / (1 - beta1**step) / denominator
    limit = threshold(lr, beta1)
    crossing = next((step for step, value in enumerate(sharpness) if value > limit), None)
    until = steps if crossing is None else crossing
    after = losses[until:]
    peak = max(range(len(after)), key=after.__getitem__, default=0)
    return Parabola(
        lr=lr,
        beta2=beta2,
        steps=steps,
        crossing=crossing,
        decay=math.nan if crossing is None else squares[until + 1] / squares[until],
        risen_before=rise(losses[:until]),
        at_crossing=math.nan if crossing is None else losses[until],
        peak=after[peak] if after else math.nan,
        peak_after=peak,
    )


def rise(losses: Sequence[float]) -> float:
    """The largest ratio of the highest loss of WINDOW steps to that of an earlier WINDOW; 1 if it never rose."""
    lowest, largest = math.inf, 1.0
    for start in range(0, len(losses), WINDOW):
        highest = max(losses[start : start + WINDOW])
        if highest > lowest:
            largest = max(largest, highest / lowest if lowest > 0 else math.inf)
        lowest = min(lowest, highest)
    return largest


@finding
class AdamSpike(Finding):
    """Reproduced if every arm that crosses the threshold rises by at least RISE after it and not before it, with v shrinking
    by beta2 at the crossing (within 0.1%), and if arms that do not cross it do not rise; else not reproduced."""

    key = "A9"
    title = "Adam alone makes loss spikes: v forgets, and a constant curvature becomes too sharp for it"
    source = "arXiv 2506.04805"
    claim = "on a parabola v decays by beta2 a step, 1/sqrt(v) passes (2+2b1)/((1-b1) lr), and only then the loss rises 100-fold"
    seeds = 1

    def measure(self, seed: int, overrides: Sequence[str]) -> Any:
        return [asdict(descend(*arm)) for arm in ARMS]

    def judge(self, seeds: Sequence[Seed]) -> Outcome:
        arms = [Parabola(**{name: _number(value) for name, value in arm.items()}) for arm in seeds[0].measured]
        crossed = [arm for arm in arms if arm.crossing is not None]
        spiked = [arm for arm in crossed if arm.peak >= RISE * arm.at_crossing and arm.peak > 0]
        early = [arm for arm in arms if arm.risen_before >= RISE]
        forgets = all(abs(arm.decay / arm.beta2 - 1) < 1e-3 for arm in crossed)
        good = bool(crossed) and len(spiked) == len(crossed) and not early and forgets
        at = ", ".join(f"{arm.crossing:,} (peak {arm.peak_after} later)" for arm in crossed)
        told = (
            f"{len(crossed)} of {len(arms)} arms cross the threshold, after {at} steps; {len(spiked)} of them spike, "
        )
        told += f"{len(early)} rose before it or without it, and v shrinks by beta2 there{'' if forgets else ' not exactly'}."
        return Outcome(Verdict.REPRODUCED if good else Verdict.NOT_REPRODUCED, told, [_row(arm) for arm in arms])


def _number(value: Any) -> Any:
    """JSON has no NaN: it is written as a word."""
    return float(value) if isinstance(value, str) else value


def _row(arm: Parabola) -> dict[str, str]:
    crossed = arm.crossing is not None
    return {
        "Adam on a parabola": f"rate {arm.lr:g}, beta2 {arm.beta2:g}",
        "steps": f"{arm.steps:,}",
        "steps until the crossing": f"{arm.crossing:,}" if crossed else "none",
        "v over v a step before": f"{arm.decay:.4f}" if crossed else "",
        "loss at the crossing": f"{arm.at_crossing:.1e}" if crossed else "",
        "highest after it": f"{arm.peak:.1e}" if crossed else "",
        "steps to that": f"{arm.peak_after}" if crossed else "",
        "rise before it": f"{arm.risen_before:.3g}",
    }

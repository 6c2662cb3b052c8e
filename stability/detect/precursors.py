"""Precursors of a spike: other signals that were out of their usual range when it began.

A signal counts if it is out of range at the spike's first step, with two values of more than 5 sigmas on the same side
since ``first_step``, or one of more than 15 (strict, since some 60 signals are checked). It is back in range after two
values in a row. Range and sigmas are those of baseline.py, two-sided, with the history frozen during an excursion.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from record.metrics import SignalKind, kind_of

from .baseline import Baseline, judged, resolution
from .events import Spike
from .median_mad import LONGEST

LEAD = 100
"""Most steps by which a precursor may precede its spike."""
HISTORY = 64
"""Earlier steps from which a signal's usual range is learnt."""
LOOK_BACK = LEAD + HISTORY + 2 * LONGEST
"""Rows to keep until a spike is over, so that :func:`precursors` sees all it needs for most spikes."""
OUT = 5.0
ALONE = 15.0
FARTHEST = 1000.0
"""Most sigmas that are told: a signal that was all but constant may jump by any number of them."""
RESOLUTION = 0.01
"""Sigma is at least this share of the level: parameter norms follow a line closely, and leave it at every bend."""
PASSED_OVER = ("loss/objective", "validation/")
"""Prefixes of metrics that say the same as others, or of later."""


@dataclass(frozen=True)
class Precursor:
    """``signal`` left its range at ``first_step``, ``lead_steps`` before the spike; ``sigmas`` is its farthest point,
    signed, at most ``FARTHEST`` away."""

    signal: str
    first_step: int
    lead_steps: int
    sigmas: float


def precursors(
    spike: Spike,
    steps: Sequence[int],
    signals: Mapping[str, Sequence[float]],
    kinds: Mapping[str, SignalKind] | None = None,
) -> list[Precursor]:
    """The precursors of ``spike`` among ``signals`` (values at ``steps``, NaN where missing), longest lead first. A lead of
    0 steps means the signal left its range together with the spike. Later steps are not considered. ``kinds`` of
    signals: as declared by default."""
    window = [i for i, step in enumerate(steps) if -LEAD - HISTORY <= step - spike.start_step <= 0]
    found = []
    for name, values in signals.items():
        kind = (kinds or {}).get(name) or kind_of(name)
        if name == spike.signal or kind == "rate" or name.startswith(PASSED_OVER):
            continue
        # Updates are proportional to the learning rate: a change of the rate is no excursion.
        per = signals["lr"] if name.startswith("update_rms/") and "lr" in signals else None
        first_step, sigmas = _excursion(
            kind, [(steps[i], judged(kind, values[i] / per[i] if per and per[i] > 0 else values[i])) for i in window]
        )
        lead = spike.start_step - first_step
        if sigmas != 0.0 and lead <= LEAD:
            found.append(Precursor(name, first_step, lead, sigmas))
    return sorted(found, key=lambda precursor: (-precursor.lead_steps, -abs(precursor.sigmas)))


def _excursion(kind: SignalKind, series: Iterable[tuple[int, float]]) -> tuple[int, float]:
    """First step and farthest sigmas of an excursion that lasts to the end of ``series``; 0 sigmas if there is none."""
    baseline = Baseline()
    out: list[tuple[int, float]] = []
    back: list[tuple[int, float]] = []
    for step, value in series:
        if math.isnan(value):
            continue
        sigmas = _sigmas(kind, baseline, step, value)
        if abs(sigmas) > OUT and (not out or sigmas * out[0][1] > 0):
            out.append((step, sigmas))
            back = []
            continue
        back.append((step, value))
        if not out or len(back) == 2:
            for accepted in back:
                baseline.accept(*accepted)
            out, back = [], []
    farthest = max((sigmas for _, sigmas in out), key=abs, default=0.0)
    farthest = max(-FARTHEST, min(FARTHEST, farthest))
    real = len(out) >= 2 or abs(farthest) > ALONE
    return (out[0][0], farthest) if out and real else (0, 0.0)


def _sigmas(kind: SignalKind, baseline: Baseline, step: int, value: float) -> float:
    """Distance of ``value`` from the expected level; 0 while it is too early to tell, or without any noise."""
    level, sigma = baseline.expected(step) or (value, 0.0)
    return (value - level) / max(sigma, resolution(kind, level, RESOLUTION)) if sigma > 0 else 0.0

"""Precursors of a spike: other signals that were out of their usual range when it began.

A signal counts if it is out of range at the spike's first step, with two values of more than 5 sigmas on the same side
since ``first_step``, or one of more than 15 (strict, since some 60 signals are checked), and if it left its range by a jump
rather than by drifting. It is back in range after two
values in a row. Range and sigmas are those of baseline.py, two-sided, with the history frozen during an excursion.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

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
JUMP, SOON = 2.5, 5
"""Sigmas from one value to the next, within so many values after it left its range: a signal that drifts out is no precursor."""
RATE_JUMP = 2.0
"""Factor by which the learning rate must rise from one row to the next."""
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
        per = signals["lr"] if name.startswith(("update_rms/", "update_ratio/")) and "lr" in signals else None
        first_step, sigmas = _excursion(
            kind, [(steps[i], judged(kind, values[i] / per[i] if per and per[i] > 0 else values[i])) for i in window]
        )
        lead = spike.start_step - first_step
        if sigmas != 0.0 and lead <= LEAD:
            found.append(Precursor(name, first_step, lead, sigmas))
    found += _rate_jump(spike, [(steps[i], signals["lr"][i]) for i in window] if "lr" in signals else [])
    return sorted(found, key=lambda precursor: (-precursor.lead_steps, -abs(precursor.sigmas)))


def _rate_jump(spike: Spike, rates: Sequence[tuple[int, float]]) -> list[Precursor]:
    """The last rise of the learning rate before the spike by more than ``RATE_JUMP``, beyond what a linear warm-up rises by
    between the two steps; in sigmas of ``RESOLUTION``."""
    positive = [(step, rate) for step, rate in rates if step > 0 and rate > 0]
    for (earlier, before), (step, rate) in reversed(list(pairwise(positive))):
        if rate > RATE_JUMP * before * step / earlier and spike.start_step - step <= LEAD:
            return [Precursor("lr", step, spike.start_step - step, min(FARTHEST, math.log(rate / before) / RESOLUTION))]
    return []


def _excursion(kind: SignalKind, series: Iterable[tuple[int, float]]) -> tuple[int, float]:
    """First step and farthest sigmas of an excursion that lasts to the end of ``series``; 0 sigmas if there is none."""
    baseline = Baseline()
    out: list[tuple[int, float, float]] = []
    """Step, value and sigmas of the excursion."""
    back: list[tuple[int, float]] = []
    last, jump = math.nan, 0.0
    for step, value in series:
        if math.isnan(value):
            continue
        sigmas, change = _sigmas(kind, baseline, step, value), _sigmas(kind, baseline, step, value, since=last)
        last = value
        if abs(sigmas) <= OUT:
            back.append((step, value))
            if not out or len(back) == 2:
                for accepted in back:
                    baseline.accept(*accepted)
                out, back = [], []
            continue
        if not out or sigmas * out[0][2] < 0:
            out, jump = [], 0.0
        out.append((step, value, sigmas))
        back = []
        if len(out) <= SOON:
            jump = max(jump, change * math.copysign(1.0, sigmas))
        if len(out) == SOON and jump <= JUMP:  # it has drifted there: that is its range now
            for drifted in out:
                baseline.accept(*drifted[:2])
            out = []
    farthest = max((sigmas for *_, sigmas in out), key=abs, default=0.0)
    farthest = max(-FARTHEST, min(FARTHEST, farthest))
    real = jump > JUMP and (len(out) >= 2 or abs(farthest) > ALONE)
    return (out[0][0], farthest) if out and real else (0, 0.0)


def _sigmas(kind: SignalKind, baseline: Baseline, step: int, value: float, since: float | None = None) -> float:
    """Distance of ``value`` from the expected level, or from ``since``; 0 while it is too early to tell, or without any noise."""
    level, sigma = baseline.expected(step) or (value, 0.0)
    distance = value - (level if since is None else since)
    return distance / max(sigma, resolution(kind, level, RESOLUTION)) if sigma > 0 else 0.0

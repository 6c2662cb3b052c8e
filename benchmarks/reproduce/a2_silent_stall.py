"""A2: at too high a rate a run stalls without any spike of its loss, so that only other signals can tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .a1_qk_norm import name_of, rates_runs
from .base import Finding, Outcome, Seed, Verdict, finding
from .numbers import NLL, above, alarms_of, over_seeds, spikes_of, validation_nll

BEHIND = 0.2
"""Nats."""
RATE = 1e-1
ENTROPY = "attention/entropy"


@dataclass(frozen=True)
class Stalled:
    """A run of the plain body at the rate 0.1, held against the one with QK-norm."""

    behind: float
    """Validation NLL more than that of its partner, nats."""
    entropy: float
    """Of the attention weights at the end, as a share of that of uniform attention, with which a new model begins."""
    loss_spikes: int
    """Spike events of the loss after the warm-up."""
    alarms: Sequence[str]
    """Which rules for instabilities without a spike have fired."""


def uniform_entropy(length: int) -> float:
    """Mean over the positions of the entropy of attention that is uniform over what a position may see, nats."""
    return math.lgamma(length + 1) / length


@finding
class SilentStall(Finding):
    """The runs of A1 at a rate of 0.1, until later the highest one.

    Reproduced if, without QK-norm, the run is behind its partner with QK-norm by 0.2 nats (mean over the seeds; the 95% interval
    excludes 0), its attention entropy has fallen below half of that of uniform attention, there is no spike event of its loss
    after the warm-up, and the stall rule or the saturation rule has fired: the last three in every seed. Not at this scale if the
    run is not behind: then there is no stall to be seen or missed.
    """

    key = "A2"
    title = "A stall is not a spike"
    source = "arXiv 2309.14322, section 3.1"
    claim = (
        "0.2 nats behind at a high rate, attention entropy falling, no spike of the loss, and the rule for stalls fires"
    )
    folder = "rates"

    def runs(self) -> Mapping[str, Sequence[str]]:
        return rates_runs()

    def judge(self, seeds: Sequence[Seed]) -> Outcome:
        return judged([_stalled(seed) for seed in seeds])


def _stalled(seed: Seed) -> Stalled:
    plain, partner = seed.runs[name_of("plain", RATE)], seed.runs[name_of("qk_norm", RATE)]
    return Stalled(
        behind=validation_nll(plain) - validation_nll(partner),
        entropy=float(plain.series(ENTROPY).iloc[-1]) / uniform_entropy(plain.config["data"]["sequence_length"]),
        loss_spikes=len(spikes_of(plain, NLL, plain.config["optimizer"]["warmup_steps"] + 1)),
        alarms=alarms_of(plain),
    )


def judged(found: Sequence[Stalled]) -> Outcome:
    """The outcome, from one run a seed."""
    behind = over_seeds([one.behind for one in found])
    silent = [one.loss_spikes == 0 and one.entropy < 0.5 and bool(one.alarms) for one in found]
    verdict = Verdict.REPRODUCED if all(silent) else Verdict.NOT_REPRODUCED
    if not above(behind, BEHIND):
        verdict = Verdict.NOT_AT_THIS_SCALE
    told = (
        f"At rate {RATE:g} the run without QK-norm is {behind.format('.2f')} nats behind; attention entropy "
        f"{max(one.entropy for one in found):.0%} of uniform attention's or less; {sum(one.loss_spikes for one in found)} spikes "
        f"of the loss; a rule for stalls fired in {sum(bool(one.alarms) for one in found)} of {len(found)} seeds."
    )
    table = [
        {"seed": f"{i}", "nats behind": f"{one.behind:.3f}", "entropy, share of uniform": f"{one.entropy:.2f}"}
        | {"spikes of the loss": f"{one.loss_spikes}", "fired": ", ".join(one.alarms) or "nothing"}
        for i, one in enumerate(found)
    ]
    return Outcome(verdict, told, table)

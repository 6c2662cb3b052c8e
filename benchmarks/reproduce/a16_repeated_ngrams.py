"""A16: batches in which a few tokens are repeated many times cause spikes, which a filter or a smaller epsilon prevents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from record.finished import Run

from .base import Finding, Outcome, Seed, Verdict, finding
from .numbers import above, over_seeds

LENGTH = 448
"""Tokens of a sequence; its window has one more."""
PLANTED = {66: 1, 76: 2, 86: 3, 96: 4, 106: 6, 116: 8, 126: 10, 136: 13}
"""Length of the repeated span by step: each fills both sequences of that step's batch, 34 times and more."""
SIGNALS = ("loss/nll", "grad_norm/total")
SOON = 2
"""Steps after a planted batch in which the spike may begin."""
COMMON = [f"data.sequence_length={LENGTH}", "train.batch_size=2", "train.steps=140", "train.eval_every=1000"]
STRESS = [
    {
        "kind": "corrupt_sequences", "step": step, "sequences": 2, "pattern": "repeated_span", "period": period,
        "repeats": (LENGTH + 1) // period,
    }
    for step, period in PLANTED.items()
]  # fmt: skip
LARGE, SMALL = 1e-5, 1e-8
"""The published code's epsilon before and after."""
ARMS: Mapping[str, Sequence[str]] = {
    "planted": [f"stress={json.dumps(STRESS)}", f"optimizer.eps={LARGE}"],
    "filtered": [f"optimizer.eps={LARGE}"],
    "small_eps": [f"stress={json.dumps(STRESS)}", f"optimizer.eps={SMALL}"],
}


@finding
class RepeatedNgrams(Finding):
    """Eight batches of a run consist of a span of 1 to 13 tokens, repeated to the end. A planted batch became a spike if an event
    in the loss or the gradient norm begins at its step or at one of the two after it; what the run without them has at the same
    steps counts against it.

    Reproduced if, over the seeds, (1) the share of planted batches that become spikes is higher than in the run without them
    (eps 1e-5 in both) and (2) eps 1e-8 makes it lower; each by the 95% interval of the paired difference. Not at this scale if
    (1) does not hold: planted batches then cause no spikes that a remedy could prevent.

    Of the four published remedies two are run: the filter, of which a run without the batches is the ideal, and the small
    epsilon. Initialisation with N(0, 0.02) is what all runs have, as the layer-dependent one that it replaced is not available
    here, and neither is a weight decay that spares the embedding alone.
    """

    key = "A16"
    title = "Repeated n-grams cause spikes; filtering them and a small epsilon help"
    source = "arXiv 2501.00656"
    claim = "batches with spans of 1 to 13 tokens repeated 32 times or more become spikes, fewer with eps 1e-8 than with 1e-5"

    def runs(self) -> Mapping[str, Sequence[str]]:
        return {name: [*COMMON, *own] for name, own in ARMS.items()}

    def judge(self, seeds: Sequence[Seed]) -> Outcome:
        return judged([{arm: spiking(seed.runs[arm]) for arm in ARMS} for seed in seeds])


def spiking(run: Run) -> list[int]:
    """The planted steps at which, or soon after which, a spike of the loss or the gradient norm begins."""
    return near([int(event["start_step"]) for signal in SIGNALS for event in run.spikes(signal)])


def near(starts: Sequence[int], planted: Sequence[int] = tuple(PLANTED)) -> list[int]:
    """The planted steps that a start follows soon."""
    return [step for step in planted if any(step <= start <= step + SOON for start in starts)]


def judged(found: Sequence[Mapping[str, Sequence[int]]], planted: int = len(PLANTED)) -> Outcome:
    """The outcome, from the planted steps that became spikes in each arm, for each seed."""
    share = {arm: [len(one[arm]) / planted for one in found] for arm in ARMS}
    caused = over_seeds(_difference(share["planted"], share["filtered"]))
    saved = over_seeds(_difference(share["planted"], share["small_eps"]))
    verdict = Verdict.REPRODUCED if above(saved) else Verdict.NOT_REPRODUCED
    if not above(caused):
        verdict = Verdict.NOT_AT_THIS_SCALE
    told = (
        f"{over_seeds(share['planted']).mean:.0%} of the planted batches become spikes, {over_seeds(share['filtered']).mean:.0%} "
        f"of the ordinary ones at the same steps (difference {caused.format('.2f')}); with eps {SMALL:g} in place of {LARGE:g} "
        f"{over_seeds(share['small_eps']).mean:.0%} (difference {saved.format('.2f')})."
    )
    table: list[dict[str, Any]] = [
        {"arm": arm, "share that became spikes": over_seeds(values).format(".2f")}
        | {"lengths of their spans, by seed": "; ".join(_lengths(one[arm]) for one in found)}
        for arm, values in share.items()
    ]
    return Outcome(verdict, told, table)


def _difference(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(first, second, strict=True)]


def _lengths(steps: Sequence[int]) -> str:
    return ", ".join(f"{PLANTED[step]}" for step in steps) or "none"

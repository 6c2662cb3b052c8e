"""A27: the kurtosis of activations and the sums of CUSUM warn before a run diverges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stability.detect.base import DETECTORS

from .base import Outcome, Seed, Verdict, finding
from .intervals import above, below
from .memorised_arms import ARMS, OfMemorised
from .precursors import PAST, Marks, ahead, column, led, row, too_few

SIGMAS = 3.0
"""The vendor's limit for the kurtosis."""
KURTOSIS_LEADS, CUSUM_LEADS = (14, 18), (9, 11)
"""The published leads, in steps."""


def kurtosis(rows: Mapping[str, Any]) -> Marks:
    """The steps at which the kurtosis of a block is more than SIGMAS standard deviations above its mean of the last PAST
    steps. The vendor's own rule learns once, from a run's first values, which here are those of a model that has learnt
    nothing yet."""
    marks: Marks = np.zeros(len(rows["loss/nll"]), dtype=bool)
    for name in rows:
        if name.startswith("hidden_kurtosis/"):
            value_S = column(rows, name)
            for step in range(PAST, len(value_S)):
                past = value_S[step - PAST : step]
                marks[step] |= bool(value_S[step] > past.mean() + SIGMAS * past.std(ddof=1))
    return marks


def cusum(rows: Mapping[str, Any]) -> Marks:
    """The steps at which the vendor's CUSUM rule, with its defaults, fires for a rise of the loss."""
    rule = DETECTORS["cusum"]("loss/nll")
    return np.array([rule.judge(value)[0] for value in column(rows, "loss/nll")], dtype=bool)


@finding
class Kurtosis(OfMemorised):
    """Reproduced if both the kurtosis and CUSUM lead spikes by a mean within the published bounds (95% interval over seeds
    inside 14 to 18, and 9 to 11 steps); refuted, that is not reproduced, if the interval of either lies outside its bounds,
    it fires before none, or it does so no more often than by chance; not at this scale otherwise, and with too few spikes
    (precursors.too_few, which was changed once). The vendor counts to a divergence, this rule to a spike, for nothing
    diverges here."""

    key = "A27"
    title = "Activation kurtosis and CUSUM warn before a divergence"
    source = "github.com/kaelvalen/trainscope 1.8.1 (README)"
    claim = "the kurtosis is out of range 14 to 18 steps before, CUSUM fires 9 to 11 steps before"

    def judge(self, seeds: Sequence[Seed]) -> Outcome:
        found = [led(seeds, list(ARMS), kurtosis), led(seeds, list(ARMS), cusum)]
        bounds = (KURTOSIS_LEADS, CUSUM_LEADS)
        inside = [above(of.mean, low) and below(of.mean, high) for of, (low, high) in zip(found, bounds, strict=True)]
        refuted = [
            not of.leads or above(of.mean, high) or below(of.mean, low) or not above(of.above_chance, 0.0)
            for of, (low, high) in zip(found, bounds, strict=True)
        ]
        if too_few(found[0]):
            verdict = Verdict.NOT_AT_THIS_SCALE
        elif all(inside) and not any(refuted):
            verdict = Verdict.REPRODUCED
        else:
            verdict = Verdict.NOT_REPRODUCED if any(refuted) else Verdict.NOT_AT_THIS_SCALE
        rows = [
            row("warning", f"{name}, {arm}", led(seeds, [arm], marks))
            for name, marks in (("kurtosis", kurtosis), ("CUSUM of the loss", cusum))
            for arm in ARMS
        ]
        said = [
            f"{name} before {of.share.mean:.0%} ({of.above_chance.format('+.2f')} above chance), lead {ahead(of)}"
            for name, of in zip(("kurtosis", "CUSUM"), found, strict=True)
        ]
        return Outcome(verdict, f"{found[0].spikes} spikes in {found[0].share.n} seeds; {said[0]}; {said[1]}.", rows)

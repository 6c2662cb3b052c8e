"""A25: before a spike Adam's update turns into a sign, and successive gradients agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .base import Outcome, Seed, Verdict, finding
from .intervals import above
from .memorised_arms import ARMS, OfMemorised
from .precursors import FIRST, Marks, column, doubled, led, row, too_few

AGREE = 0.5
"""Cosine of the gradient with the running mean before it from which on they are said to agree."""


def sign_like(rows: Mapping[str, Any]) -> Marks:
    """The steps at which the share of elements with abs(m) / sqrt(v) > 0.9 has doubled."""
    return doubled(column(rows, "adam/sign_like"))


def agreeing(rows: Mapping[str, Any]) -> Marks:
    """The steps at which the gradient points along its running mean."""
    marks: Marks = column(rows, "adam/momentum_cosine") > AGREE
    marks[:FIRST] = False
    return marks


@finding
class SignLike(OfMemorised):
    """Reproduced if at least half of a seed's spikes have, 1 to 20 steps earlier, a share of |m| / sqrt(v) > 0.9 of twice its
    lowest of the 20 steps before, and more than by chance (95% interval over seeds); not at this scale if there are too few
    spikes (precursors.too_few, which was changed once); else not reproduced. Whether gradients agree is told and not judged."""

    key = "A25"
    title = "The share of Adam's elements with |m|/sqrt(v) near 1 rises before a spike"
    source = "arXiv 2304.09871"
    claim = "the share of elements with |m|/sqrt(v) > 0.9 doubles before the loss rises"

    def judge(self, seeds: Sequence[Seed]) -> Outcome:
        signs, agree = (led(seeds, list(ARMS), marks) for marks in (sign_like, agreeing))
        if too_few(signs):
            verdict = Verdict.NOT_AT_THIS_SCALE
        else:
            good = signs.share.mean >= 0.5 and above(signs.above_chance, 0.0)
            verdict = Verdict.REPRODUCED if good else Verdict.NOT_REPRODUCED
        heading = "Adam's elements"
        rows = [row(heading, f"share above 0.9 doubled, {arm}", led(seeds, [arm], sign_like)) for arm in ARMS]
        rows += [row(heading, f"gradient along m (> {AGREE}), {arm}", led(seeds, [arm], agreeing)) for arm in ARMS]
        told = (
            f"{signs.spikes} spikes in {signs.share.n} seeds; the share doubles before {signs.share.mean:.0%} of them, "
        )
        told += f"{signs.above_chance.format('+.2f')} above chance; the gradient points along its running mean before "
        told += f"{agree.share.mean:.0%}, {agree.above_chance.format('+.2f')} above chance."
        return Outcome(verdict, told, rows)

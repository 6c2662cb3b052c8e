"""A7: RMS_t, by how much the gradient exceeds what Adam's second moment expects, is out of its range before the loss is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from .base import Outcome, Seed, Verdict, finding
from .intervals import above
from .memorised_arms import ARMS, OfMemorised
from .precursors import FIRST, Marks, column, led, row, too_few

LIMIT = 2.3
"""RMS from which on the authors speak of a spike of it."""
LEAST, MOST = 1, 8
"""The published lead, in steps."""
GROUP = "embedding"
"""The authors look at the patch embedding, which is where the input enters."""


def exceeds(rows: Mapping[str, Any], group: str = GROUP) -> Marks:
    """The steps at which the RMS of a group is above LIMIT."""
    marks: Marks = column(rows, f"adam_rms/{group}") > LIMIT
    marks[:FIRST] = False
    return marks


@finding
class RmsLeads(OfMemorised):
    """Over all spikes of the arms: reproduced if at least half of a seed's spikes have an RMS above LIMIT in the embedding
    for the first time LEAST to MOST steps before, and more than by chance (95% interval over seeds). Not at this scale if
    there are too few spikes (precursors.too_few, which was changed once) or the RMS is nowhere above LIMIT; else not
    reproduced. Of the lag's dependence on beta2 only the numbers are told."""

    key = "A7"
    title = "The RMS of g/sqrt(v) spikes before the loss does"
    source = "arXiv 2304.13013"
    claim = "RMS_t of the embedding passes 2.3 one to eight steps before a loss spike, the later the smaller beta2 is"

    def judge(self, seeds: Sequence[Seed]) -> Outcome:
        whole = led(seeds, list(ARMS), exceeds, LEAST, MOST)
        ever = sum(int(exceeds(seed.measured[arm]).sum()) for seed in seeds for arm in ARMS)
        if too_few(whole) or not ever:
            verdict = Verdict.NOT_AT_THIS_SCALE
        else:
            good = whole.share.mean >= 0.5 and above(whole.above_chance, 0.0)
            verdict = Verdict.REPRODUCED if good else Verdict.NOT_REPRODUCED
        heading = "RMS above 2.3"
        rows = [row(heading, f"{arm}, embedding", led(seeds, [arm], exceeds, LEAST, MOST)) for arm in ARMS]
        rows += [
            row(heading, f"all arms, {group}", led(seeds, list(ARMS), partial(exceeds, group=group), LEAST, MOST))
            for group in _groups(seeds)
        ]
        share, better = f"{whole.share.mean:.0%}", whole.above_chance.format("+.2f")
        told = (
            f"{whole.spikes} spikes in {whole.share.n} seeds; before {share} of them the embedding's RMS first passes "
        )
        told += f"{LIMIT} by {LEAST} to {MOST} steps, {better} above chance; it is above {LIMIT} at {ever} steps."
        return Outcome(verdict, told, rows)


def _groups(seeds: Sequence[Seed]) -> list[str]:
    return [name.partition("/")[2] for name in seeds[0].measured[next(iter(ARMS))] if name.startswith("adam_rms/")]

"""A8: in which order update, loss and gradient grow at a spike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .base import Outcome, Seed, Verdict, finding
from .intervals import above, below
from .memorised_arms import ARMS, OfMemorised
from .precursors import Marks, ahead, column, doubled, led, row, too_few


def update(rows: Mapping[str, Any]) -> Marks:
    """The steps at which the update of the whole model has doubled (the root mean square of its groups')."""
    groups = [column(rows, name) for name in rows if name.startswith("update_rms/")]
    return doubled(np.sqrt(np.mean(np.square(groups), axis=0)))


def gradient(rows: Mapping[str, Any]) -> Marks:
    """The steps at which the gradient norm has."""
    return doubled(column(rows, "grad_norm/total"))


@finding
class Order(OfMemorised):
    """A signal departs at the first step at which it is twice its lowest of the last 20 steps, from 20 steps before a spike
    to 5 after its first step, at which the loss has doubled. Reproduced if the mean lead of the update is above 0 and that of
    the gradient norm below 0 (95% intervals over seeds); not at this scale if there are too few spikes (precursors.too_few,
    which was changed once); else not reproduced."""

    key = "A8"
    title = "At a spike the update grows first, then the loss, and the gradient norm last"
    source = "github.com/marin-community/marin/issues/1368"
    claim = "the update's norm doubles before the loss rises, the gradient norm only after it"

    def judge(self, seeds: Sequence[Seed]) -> Outcome:
        first, last = (led(seeds, list(ARMS), marks) for marks in (update, gradient))
        if too_few(first):
            verdict = Verdict.NOT_AT_THIS_SCALE
        else:
            good = above(first.mean, 0.0) and below(last.mean, 0.0)
            verdict = Verdict.REPRODUCED if good else Verdict.NOT_REPRODUCED
        rows = [
            row("doubled", f"{name}, {arm}", led(seeds, [arm], marks))
            for name, marks in (("update", update), ("gradient norm", gradient))
            for arm in ARMS
        ]
        told = (
            f"{first.spikes} spikes in {first.share.n} seeds; doubled before the loss does: update by {ahead(first)} "
        )
        told += f"({len(first.leads)} spikes), gradient norm by {ahead(last)} ({len(last.leads)} spikes)."
        return Outcome(verdict, told, rows)

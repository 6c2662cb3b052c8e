"""Going back before a spike and going on without the batches it was met at, as for PaLM (arXiv 2204.02311, section 5.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from common.section import MOST, Text
from data.batches import batch_number
from record.checkpoints import checkpoint_before, list_checkpoints, step_of
from record.rewinds import RewindEvent
from stability.detect.events import Alarm

from .base import INTERVENTIONS, Intervention, Rewind


@INTERVENTIONS.register("rewind")
class RewindOnSpike(Intervention):
    """On a spike, goes back to the last checkpoint before it and on without the batches it was met at (PaLM, section 5.1).

    Checkpoints of a stop do not count: a run that was stopped goes back to where it would have gone back without.
    """

    @dataclass(frozen=True)
    class Options:
        signal: Text = "loss/nll"
        """One of ``detection.signals``. A value that is not finite, of any signal that ends a run, counts as well."""
        min_sigmas: Annotated[float, Field(gt=0)] = 10.0
        """Spikes lower than this are let pass."""
        margin: Annotated[int, Field(ge=0, le=MOST)] = 0
        """Batches left out on either side of the spike's own."""
        most: Annotated[int, Field(ge=1, le=MOST)] = 3
        """After so many rewinds the run goes on whatever comes."""

    @classmethod
    def problems(cls, options: Any, *, signals: Sequence[str]) -> Sequence[tuple[str, str]]:
        """That of a signal which nobody watches."""
        watched = ", ".join(signals)
        unwatched = f"{options.signal} is not among detection.signals ({watched})"
        return () if options.signal in signals else (("signal", unwatched),)

    def on_alarms(self, alarms: Sequence[Alarm]) -> Rewind | None:
        o = self.options
        serious = [a for a in alarms if math.isinf(a.sigmas) or (a.signal == o.signal and a.sigmas >= o.min_sigmas)]
        # A spike that was going on when the run was stopped is told again, longer, after it has gone on.
        first = min(serious, key=lambda a: (a.start_step, -a.end_step), default=None)
        return None if first is None else Rewind(first, o.margin, o.most)


def decide(
    wishes: Sequence[Rewind],
    last: RewindEvent | None,
    always_skipped: Sequence[list[int]],
    step: int,
    run: Path,
    every: int = 1,
) -> RewindEvent | None:
    """Where the run, which has come to ``step``, goes back to; None if it goes on, as it must when no checkpoint is old enough.

    ``wishes``: of the interventions, in their order. ``every``: at the multiples of which checkpoints are due; those of a stop,
    which an unbroken run does not have, do not count. ``last``: its last rewind, if any. ``always_skipped``: the batches that
    its configuration leaves out.
    """
    number = 1 if last is None else last.number + 1
    earlier = [] if last is None else last.skipped
    for wish in wishes:
        if number > wish.most:
            continue
        alarm = wish.alarm
        checkpoint = checkpoint_before(run, alarm.start_step, every)
        if checkpoint is None and any(step_of(path) % every == 0 for path in list_checkpoints(run)):
            continue  # the one before it has been pruned: a creep's beginning may lie far back
        to_step = step_of(checkpoint) if checkpoint else 0
        drawn = [batch_number(s, [*always_skipped, *earlier]) for s in (to_step, alarm.start_step, alarm.end_step)]
        # What the checkpoint has seen cannot be left out any more.
        consumed = drawn[0] if to_step else 0
        batches = [max(consumed + 1, drawn[1] - wish.margin), drawn[2] + wish.margin]
        return RewindEvent(number, step, to_step, [*earlier, batches], asdict(alarm))
    return None

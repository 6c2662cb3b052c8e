"""Going back to before a spike and continuing without its batches, as for PaLM (arXiv 2204.02311, section 5.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from common.section import MOST, Text
from data.batches import batch_number
from record.checkpoints import checkpoint_before, list_checkpoints, start_of, step_of
from record.rewinds import RewindEvent
from stability.detect.events import Alarm

from .base import INTERVENTIONS, Intervention, Rewind


@INTERVENTIONS.register("rewind")
class RewindOnSpike(Intervention):
    """On a spike, goes back to the last checkpoint before it and continues without its batches (PaLM, section 5.1).

    Checkpoints written at a stop do not count, so that a run that was stopped rewinds exactly as an unbroken one.
    """

    @dataclass(frozen=True)
    class Options:
        signal: Text = "loss/nll"
        """One of ``detection.signals``. Values that are not finite and would end the run count too, of any signal."""
        min_sigmas: Annotated[float, Field(gt=0)] = 10.0
        """Lower spikes are ignored."""
        margin: Annotated[int, Field(ge=0, le=MOST)] = 0
        """Batches to skip on either side, besides those of the spike."""
        most: Annotated[int, Field(ge=1, le=MOST)] = 3
        """Rewinds of a run, at most; later spikes are ignored."""

    @classmethod
    def problems(cls, options: Any, *, signals: Sequence[str]) -> Sequence[tuple[str, str]]:
        """A problem if the signal is not watched."""
        watched = ", ".join(signals)
        unwatched = f"{options.signal} is not among detection.signals ({watched})"
        return () if options.signal in signals else (("signal", unwatched),)

    def on_alarms(self, alarms: Sequence[Alarm]) -> Rewind | None:
        o = self.options
        serious = [a for a in alarms if math.isinf(a.sigmas) or (a.signal == o.signal and a.sigmas >= o.min_sigmas)]
        # A spike that lasted through a stop is reported again, longer, after the run has resumed.
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
    """Where the run goes back to from ``step``; None if it goes on, as it must when no checkpoint is old enough.

    ``wishes``: of the interventions, in their order. ``last``: the run's last rewind, if any. ``always_skipped``: batches that
    the configuration skips. ``every``: steps between checkpoints; others were written at a stop and do not count.
    """
    number = 1 if last is None else last.number + 1
    earlier = [] if last is None else last.skipped
    for wish in wishes:
        if number > wish.most:
            continue
        alarm = wish.alarm
        checkpoint = checkpoint_before(run, alarm.start_step, every)
        if checkpoint == start_of(run) and any(step_of(path) % every == 0 for path in list_checkpoints(run)):
            continue  # the one before it has been pruned: a slow rise may have begun long ago
        to_step = step_of(checkpoint) if checkpoint else 0
        drawn = [batch_number(s, [*always_skipped, *earlier]) for s in (to_step, alarm.start_step, alarm.end_step)]
        # Batches before the checkpoint can no longer be skipped.
        consumed = drawn[0] if checkpoint else 0
        batches = [max(consumed + 1, drawn[1] - wish.margin), drawn[2] + wish.margin]
        return RewindEvent(number, step, to_step, [*earlier, batches], asdict(alarm))
    return None

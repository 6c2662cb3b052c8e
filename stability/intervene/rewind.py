"""When a run goes back to a checkpoint, and which batches it leaves out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from configs.schema import Rewind
from data.batches import batch_number
from record.checkpoints import checkpoint_before, list_checkpoints, step_of
from record.rewinds import GoingBack
from stability.detect.events import Alarm


def decide(
    policies: Sequence[Rewind],
    alarms: Sequence[Alarm],
    last: GoingBack | None,
    always_skipped: Sequence[list[int]],
    step: int,
    run: Path,
    every: int = 1,
) -> GoingBack | None:
    """Where the run, which has come to ``step``, goes back to; None if it goes on, as it must when no checkpoint is old enough.

    ``every``: at the multiples of which checkpoints are due; those of a stop, which an unbroken run does not have, do not count.
    ``last``: its last rewind, if any. ``always_skipped``: the batches that its configuration leaves out.
    """
    number = 1 if last is None else last.number + 1
    earlier = [] if last is None else last.skipped
    for policy in policies:
        serious = [
            a for a in alarms if math.isinf(a.sigmas) or (a.signal == policy.signal and a.sigmas >= policy.min_sigmas)
        ]
        if number > policy.most or not serious:
            continue
        # A spike that was going on when the run was stopped is told again, longer, after it has gone on.
        alarm = min(serious, key=lambda a: (a.start_step, -a.end_step))
        checkpoint = checkpoint_before(run, alarm.start_step, every)
        if checkpoint is None and any(step_of(path) % every == 0 for path in list_checkpoints(run)):
            continue  # the one before it has been pruned: a creep's beginning may lie far back
        to_step = step_of(checkpoint) if checkpoint else 0
        drawn = [batch_number(s, [*always_skipped, *earlier]) for s in (to_step, alarm.start_step, alarm.end_step)]
        # What the checkpoint has seen cannot be left out any more.
        consumed = drawn[0] if to_step else 0
        batches = [max(consumed + 1, drawn[1] - policy.margin), drawn[2] + policy.margin]
        return GoingBack(number, step, to_step, [*earlier, batches], asdict(alarm))
    return None

"""Going back before a spike and going on without the batches it was met at, as for PaLM (arXiv 2204.02311, section 5.1).

A rewind changes one thing: which batches later steps draw. It is decided from what every rank knows, is told by one event
in events.jsonl, and a run that is resumed or replayed reads it there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from configs.schema import Rewind
from data.batches import batch_number

from .checkpoints import checkpoint_before, delete, list_checkpoints, step_of
from .recorder import Recorder, read_rows

ABANDONED = "abandoned.jsonl"
"""The rows that rewinds took back, each with the rewind's number."""


@dataclass(frozen=True)
class Alarm:
    """Something a run may go back for: a spike, over or not, or a value that is not finite (of infinite height)."""

    signal: str
    start_step: int
    end_step: int
    sigmas: float


@dataclass(frozen=True)
class GoingBack:
    """One rewind: from a step back to a checkpoint (0: to the start), and the batches left out from there on."""

    number: int
    """The how-manieth of this run, from 1."""
    from_step: int
    to_step: int
    skipped: list[list[int]]
    """[first, last] in the order of batches, of this rewind and of those before it."""
    cause: dict[str, Any]
    """The alarm."""


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


def take_back(recorder: Recorder, back: GoingBack) -> None:
    """Make the run directory that of a run which has come to ``back.to_step`` only, and write the event. Main process only.

    The rows are kept aside first. Then the newer checkpoints go: a run killed in between meets the spike again and decides again.
    """
    recorder.archive(ABANDONED, back.to_step, back.number)
    for checkpoint in list_checkpoints(recorder.directory):
        if step_of(checkpoint) > back.to_step:
            delete(checkpoint)
    recorder.event("rewind", back.to_step, **asdict(back))
    recorder.rewind(back.to_step)


def last_rewind(run: Path, step: int | None = None) -> GoingBack | None:
    """The last rewind of a run, or the last one that a run which has come to ``step`` has behind it."""
    for event in reversed(read_rows(run / "events.jsonl")):
        if event["event"] == "rewind" and (step is None or event["to_step"] <= step):
            return GoingBack(**{field.name: event[field.name] for field in fields(GoingBack)})
    return None

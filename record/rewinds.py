"""Going back before a spike and going on without the batches it was met at, as for PaLM (arXiv 2204.02311, section 5.1).

A rewind changes one thing: which batches later steps draw. It is decided from what every rank knows, is told by one event
in events.jsonl, and a run that is resumed or replayed reads it there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .checkpoints import delete, list_checkpoints, step_of
from .recorder import Recorder
from .rows import read_rows

ABANDONED = "abandoned.jsonl"
"""The rows that rewinds took back, each with the rewind's number."""


@dataclass(frozen=True)
class GoingBack:
    """One rewind: from a step back to a checkpoint (0: to the start), and the batches left out from there on."""

    number: int
    """Which rewind of the run this is, from 1."""
    from_step: int
    to_step: int
    skipped: list[list[int]]
    """[first, last] in the order of batches, of this rewind and of those before it."""
    cause: dict[str, Any]
    """The alarm."""


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

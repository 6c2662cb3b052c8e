"""Rewinding to before a spike and skipping the batches around it, as for PaLM (arXiv 2204.02311, section 5.1).

A rewind changes only which batches later steps draw. It is recorded as one event in events.jsonl, from which a run that is
resumed or replayed reads it.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .checkpoints import delete, list_checkpoints, step_of
from .recorder import Recorder
from .rows import read_rows

ABANDONED = "abandoned.jsonl"
"""The rows that rewinds took back, each with the rewind's number."""


@dataclass(frozen=True)
class RewindEvent:
    """One rewind from a step back to a checkpoint (0: the start), and the batches skipped from there on."""

    number: int
    """Counted from 1 over the run."""
    from_step: int
    to_step: int
    skipped: list[list[int]]
    """[first, last] in the order of batches, for this rewind and all before it."""
    cause: dict[str, Any]
    """The alarm."""


def take_back(recorder: Recorder, back: RewindEvent) -> None:
    """Take the run directory back to ``back.to_step`` and write the event. Main process only. Rows are archived first, then
    newer checkpoints deleted: a run killed in between meets the spike again and decides again."""
    recorder.archive(ABANDONED, back.to_step, back.number)
    for checkpoint in list_checkpoints(recorder.directory):
        if step_of(checkpoint) > back.to_step:
            delete(checkpoint)
    recorder.event("rewind", back.to_step, **asdict(back))
    recorder.rewind(back.to_step)


def last_rewind(run: Path, step: int | None = None) -> RewindEvent | None:
    """The last rewind of a run, or the last one that applies to a run at ``step``."""
    for event in reversed(read_rows(run / "events.jsonl")):
        if event["event"] == "rewind" and (step is None or event["to_step"] <= step):
            return RewindEvent(**{field.name: event[field.name] for field in fields(RewindEvent)})
    return None

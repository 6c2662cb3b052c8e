"""The writer of a run directory: rows of metrics, events, status, configuration and environment.

Rows stay on the device until :meth:`Recorder.transfer` copies all buffered steps to the host at once. Files hold strict
JSON (non-finite numbers as the strings "NaN", "Infinity", "-Infinity"), one object per line.
"""

import errno
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.files import flush_to_disk, replace_file

from .rows import Row, drop_torn_line, json_line, read_rows, rows_backwards

ALIVE = "alive"
"""Key of the value that says whether everything has been finite so far: 1 (as without it), and NaN from the first bad step on."""
ABOUT_PROCESSES = ("resume", "preempted", "checkpoint_rejected", "rank_lost", "tracker_failed", "monitor_failed")
"""Events of a process rather than of training: kept when a run resumes from an earlier step."""

AT_THE_END = "closed_by_the_end"
"""Field of an event that was still going on when the run ended. A run that goes on from there, or was killed before its status
was written, finds it again."""


class Transfer(NamedTuple):
    """Steps that came to the host; the first ``healthy`` of them were updates, the rest changed nothing."""

    rows: list[Row]
    healthy: int


class Recorder:
    """Writer of one run directory. Only the main process writes; the other ranks buffer and transfer alike."""

    def __init__(self, directory: Path, writes: bool) -> None:
        self.directory, self.writes = directory, writes
        self.buffer: list[tuple[Row, list[str], Tensor]] = []
        self._size: int | None = None
        """Size of metrics.jsonl, once this recorder has written to it."""

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the run directory atomically, creating the directory."""
        if self.writes:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._replace(name, text)

    def _replace(self, name: str, text: str) -> None:
        # Without a process number in its name: the run's next process replaces what a killed one has left.
        replace_file(self.directory / name, self.directory / f".{name}.tmp", lambda file: file.write(text.encode()))

    def status(self, status: str, step: int, reason: str = "") -> None:
        """Write status.json: running, finished, diverged, preempted or failed."""
        self.write_text("status.json", json.dumps({"status": status, "step": step, "reason": reason}) + "\n")

    def add(self, host: Row, device: dict[str, Tensor]) -> None:
        """Buffer one step: values known on the host, and 0-d device tensors. Waits for nothing."""
        self.add_vector(host, list(device), torch.stack([v.float() for v in device.values()]))

    def add_vector(self, host: Row, names: list[str], values: Tensor) -> None:
        """The same, with the device's values as one float32 tensor (len(names),)."""
        self.buffer.append((host, names, values))

    def transfer(self) -> Transfer:
        """Copy the buffered steps to the host, oldest first, and empty the buffer."""
        if not self.buffer:
            return Transfer([], 0)
        values = iter(torch.cat([vector for _, _, vector in self.buffer]).tolist())
        rows = [{**host, **{name: next(values) for name in names}} for host, names, _ in self.buffer]
        self.buffer.clear()
        alive = [row.pop(ALIVE, 1) == 1 for row in rows]
        return Transfer(rows, [*alive, False].index(False))

    def write_rows(self, rows: Iterable[Row]) -> None:
        """Append rows to metrics.jsonl. Raises OSError if somebody else has changed or deleted the file."""
        if not self.writes:
            return
        path = self.directory / "metrics.jsonl"
        with path.open("r+" if self._size else "a", encoding="utf-8") as file:  # "r+" does not recreate a deleted file
            file.seek(0, os.SEEK_END)
            if self._size is not None and file.tell() != self._size:
                raise OSError(errno.ESTALE, "deleted or changed by another program", str(path))
            file.write(_text_of(rows))
            self._size = file.tell()

    def event(self, event: str, written_at: int, **fields: Any) -> None:
        """Append one event to events.jsonl. ``written_at`` is the step the run had reached when it was found."""
        if not self.writes:
            return
        path = self.directory / "events.jsonl"
        drop_torn_line(path)  # of a rank that is gone, or of a disk that was full
        with path.open("a", encoding="utf-8") as file:
            file.write(json_line({"event": event, "written_at": written_at, **fields}) + "\n")

    def archive(self, name: str, step: int, number: int) -> None:
        """Keep the rows after ``step`` in the file ``name``, marked with the rewind's ``number``; may be repeated."""
        if not self.writes:
            return
        before = [row for row in read_rows(self.directory / name) if row["rewind"] != number]
        after = [row | {"rewind": number} for row in self._rows_after(step)]
        self._replace(name, _text_of([*before, *after[::-1]]))

    def _rows_after(self, step: int) -> Iterator[Row]:
        rows = (row for _, row in rows_backwards(self.directory / "metrics.jsonl"))
        return itertools.takewhile(lambda row: row["step"] > step, rows)

    def rewind(self, step: int) -> None:
        """Drop rows and events after ``step``: the run continues from a checkpoint there and will write them again."""
        if not self.writes:
            return
        metrics, events = self.directory / "metrics.jsonl", self.directory / "events.jsonl"
        self._size = 0
        if metrics.exists():
            self._size = next((end for end, row in rows_backwards(metrics) if row["step"] <= step), 0)
            os.truncate(metrics, self._size)
        kept = [
            row
            for row in read_rows(events)
            if row["written_at"] + row.get(AT_THE_END, False) <= step or row["event"] in ABOUT_PROCESSES
        ]
        self._replace(events.name, _text_of(kept))

    def sync(self) -> None:
        """Flush all rows and events to disk, as is done before a checkpoint is written."""
        if self.writes:
            for name in ("metrics.jsonl", "events.jsonl"):
                if (path := self.directory / name).exists():
                    flush_to_disk(path)


def _text_of(rows: Iterable[Row]) -> str:
    return "".join(json_line(row) + "\n" for row in rows)

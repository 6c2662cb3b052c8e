"""The run directory: rows of metrics, events, status, configuration and environment.

Rows stay on the device until :meth:`Recorder.transfer` brings all buffered steps over in one copy; readers get strict JSON
(non-finite numbers as the strings "NaN", "Infinity", "-Infinity") with one object for every step.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.files import flush_to_disk

from .rows import Row, drop_torn_line, json_line, read_rows, rows_backwards

ALIVE = "alive"
"""Key of the value that says whether all was finite up to a step: 1, and NaN from the first step on at which it was not."""
ABOUT_PROCESSES = ("resume", "preempted", "checkpoint_rejected", "rank_lost", "tracker_failed")
"""Events that a run which goes on from a checkpoint will not meet again."""


class Transfer(NamedTuple):
    """Steps as they came to the host; the first ``healthy`` of them were taken, the others changed nothing any more."""

    rows: list[Row]
    healthy: int


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` so that a reader sees the old or the new file, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


class Recorder:
    """Writer of one run directory. Only the main process writes; the other ranks buffer and transfer alike."""

    def __init__(self, directory: Path, writes: bool) -> None:
        self.directory, self.writes = directory, writes
        self.buffer: list[tuple[Row, list[str], Tensor]] = []
        self._size: int | None = None
        """Of metrics.jsonl, once this recorder has touched it."""

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the run directory atomically, creating the directory."""
        if self.writes:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_atomically(self.directory / name, text)

    def status(self, status: str, step: int, reason: str = "") -> None:
        """Write status.json: running, finished, diverged, preempted or failed."""
        self.write_text("status.json", json.dumps({"status": status, "step": step, "reason": reason}) + "\n")

    def add(self, host: Row, device: dict[str, Tensor]) -> None:
        """Buffer one step: values known on the host, and 0-d device tensors, ALIVE among them. Waits for nothing."""
        self.buffer.append((host, list(device), torch.stack([v.float() for v in device.values()])))

    def transfer(self) -> Transfer:
        """Bring the buffered steps to the host in one copy, oldest first, and empty the buffer."""
        if not self.buffer:
            return Transfer([], 0)
        values = iter(torch.cat([vector for _, _, vector in self.buffer]).tolist())
        rows = [{**host, **{name: next(values) for name in names}} for host, names, _ in self.buffer]
        self.buffer.clear()
        alive = [row.pop(ALIVE) == 1 for row in rows]
        return Transfer(rows, [*alive, False].index(False))

    def write_rows(self, rows: Iterable[Row]) -> None:
        """Append rows to metrics.jsonl. Raises OSError if the file is not as this recorder left it, for one deleted."""
        if not self.writes:
            return
        path = self.directory / "metrics.jsonl"
        with path.open("r+" if self._size else "a", encoding="utf-8") as file:  # a file that is gone is not made anew
            file.seek(0, os.SEEK_END)
            if self._size is not None and file.tell() != self._size:
                raise OSError(errno.ESTALE, "deleted or changed by another program", str(path))
            file.writelines(json_line(row) + "\n" for row in rows)
            self._size = file.tell()

    def event(self, event: str, written_at: int, **fields: Any) -> None:
        """Append one event to events.jsonl. ``written_at`` is the step up to which the run had come when it was known."""
        if not self.writes:
            return
        path = self.directory / "events.jsonl"
        drop_torn_line(path)  # of a rank that is gone, or of a disk that was full
        with path.open("a", encoding="utf-8") as file:
            file.write(json_line({"event": event, "written_at": written_at, **fields}) + "\n")

    def archive(self, name: str, step: int, number: int) -> None:
        """Keep the rows after ``step`` in the file ``name`` of the run directory, as those of rewind ``number``, once."""
        if not self.writes:
            return
        path = self.directory / name
        before = [
            row for row in read_rows(path) if row["rewind"] != number
        ]  # what a run killed here has written already
        after = itertools.takewhile(
            lambda row: row["step"] > step, (row for _, row in rows_backwards(self.directory / "metrics.jsonl"))
        )
        new = [row | {"rewind": number} for row in after][::-1]
        write_atomically(path, "".join(json_line(row) + "\n" for row in [*before, *new]))

    def rewind(self, step: int) -> None:
        """Drop rows and events after ``step``: the run goes on from a checkpoint there and will write them again."""
        if not self.writes:
            return
        metrics, events = self.directory / "metrics.jsonl", self.directory / "events.jsonl"
        self._size = 0
        if metrics.exists():
            self._size = next((end for end, row in rows_backwards(metrics) if row["step"] <= step), 0)
            os.truncate(metrics, self._size)
        kept = [row for row in read_rows(events) if row["written_at"] <= step or row["event"] in ABOUT_PROCESSES]
        write_atomically(events, "".join(json_line(row) + "\n" for row in kept))

    def sync(self) -> None:
        """Have all rows and events on the disk, as a checkpoint that is about to be written will be."""
        if self.writes:
            for name in ("metrics.jsonl", "events.jsonl"):
                if (path := self.directory / name).exists():
                    flush_to_disk(path)

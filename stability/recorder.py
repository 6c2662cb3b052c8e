"""The run directory: rows of metrics, events, status, configuration and environment.

Rows stay on the device until :meth:`Recorder.transfer` brings all buffered steps over in one copy; readers get strict JSON
(non-finite numbers as the strings "NaN", "Infinity", "-Infinity") with one object for every step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from configs.files import strict

Row = dict[str, Any]


def json_line(row: Row) -> str:
    """One strict-JSON line; floats that are not finite become strings."""
    return json.dumps(strict(row), allow_nan=False)


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` so that a reader sees the old or the new file, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_rows(path: Path) -> list[Row]:
    """The objects of a .jsonl file; a torn last line (a killed writer) is left out. Raises ValueError for any other bad line."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            if line:
                rows.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}:{number}: not a JSON object: {error}") from None
    return rows


class Recorder:
    """Writer of one run directory. Only the main process writes; the other ranks buffer and transfer alike."""

    def __init__(self, directory: Path, writes: bool) -> None:
        self.directory, self.writes = directory, writes
        self.buffer: list[tuple[Row, list[str], Tensor]] = []

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the run directory atomically, creating the directory."""
        if self.writes:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_atomically(self.directory / name, text)

    def status(self, status: str, step: int, reason: str = "") -> None:
        """Write status.json: running, finished, diverged, preempted or failed."""
        self.write_text("status.json", json.dumps({"status": status, "step": step, "reason": reason}) + "\n")

    def add(self, host: Row, device: dict[str, Tensor]) -> None:
        """Buffer one step: values known on the host, and 0-d device tensors. Waits for nothing."""
        self.buffer.append((host, list(device), torch.stack([v.float() for v in device.values()])))

    def transfer(self) -> list[Row]:
        """Bring the buffered steps to the host in one copy, oldest first, and empty the buffer."""
        if not self.buffer:
            return []
        values = iter(torch.cat([vector for _, _, vector in self.buffer]).tolist())
        rows = [{**host, **{name: next(values) for name in names}} for host, names, _ in self.buffer]
        self.buffer.clear()
        return rows

    def write_rows(self, rows: Iterable[Row]) -> None:
        """Append rows to metrics.jsonl."""
        self._append("metrics.jsonl", rows)

    def event(self, event: str, written_at: int, **fields: Any) -> None:
        """Append one event to events.jsonl. ``written_at`` is the step up to which the run had come when it was known."""
        self._append("events.jsonl", [{"event": event, "written_at": written_at, **fields}])

    def _append(self, name: str, rows: Iterable[Row]) -> None:
        if self.writes:
            with (self.directory / name).open("a", encoding="utf-8") as file:
                file.writelines(json_line(row) + "\n" for row in rows)

    def archive(self, step: int, name: str) -> None:
        """Append the rows after ``step`` to the file ``name`` of the run directory."""
        self._append(name, [row for row in read_rows(self.directory / "metrics.jsonl") if row["step"] > step])

    def rewind(self, step: int) -> None:
        """Drop rows and events after ``step``: the run goes on from a checkpoint there and will write them again."""
        if not self.writes:
            return
        for name, key in (("metrics.jsonl", "step"), ("events.jsonl", "written_at")):
            kept = [row for row in read_rows(self.directory / name) if row[key] <= step]
            write_atomically(self.directory / name, "".join(json_line(row) + "\n" for row in kept))

"""What all rooms share about files: strict JSON, and writes that survive a power cut."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

LAST_BYTES = 1 << 20
"""The end of a file in which its last line is looked for: far longer than a row."""


def at_home(path: str) -> str:
    """``path`` with the home directory for a leading ``~`` or ``~user``. Raises ValueError if that is nobody's."""
    whole = os.path.expanduser(path)  # noqa: PTH111  (pathlib takes ./~ for ~)
    if whole.startswith("~"):
        raise ValueError(f"{path.partition('/')[0]} is nobody's home here; if it is a file's name, write ./{path}")
    return whole


def strict(value: Any) -> Any:
    """A copy of nested dicts, lists and tuples in which NaN and infinities are "NaN", "Infinity" and "-Infinity"."""
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def last_row(path: Path) -> dict[str, Any] | None:
    """The last whole line of a .jsonl file that may still be written to, as an object; None if there is none yet.

    Raises ValueError if it is no JSON object.
    """
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - LAST_BYTES))
        lines = file.read().split(b"\n")[:-1]
    return dict(json.loads(lines[-1])) if lines else None


def flush_to_disk(path: Path) -> None:
    """Ask the system to write a file, or a folder's list of entries, to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

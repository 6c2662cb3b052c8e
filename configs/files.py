"""What all rooms share about files: strict JSON, and writes that survive a power cut."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any


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


def flush_to_disk(path: Path) -> None:
    """Ask the system to write a file, or a folder's list of entries, to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Folders walked with their links followed, and hashes by which files and values are known to be unchanged."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from configs.errors import InputError


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON value in its canonical spelling (sorted keys, no spaces), in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def folders_below(folder: Path, without: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield ``folder`` and all folders below it, in an order that never varies, with the names of what is no folder.

    Links are followed, and a folder that several of them lead to is entered once, so that no loop is endless. The folder
    ``without`` is left out. Raises InputError for a folder that cannot be read.
    """

    def tell(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}")

    entered = {os.path.realpath(without)}
    for place, subfolders, names in os.walk(folder, followlinks=True, onerror=tell):
        real = os.path.realpath(place)
        if real in entered:
            subfolders.clear()
            continue
        entered.add(real)
        subfolders.sort()
        yield Path(place), names


def paths_below(folder: Path, without: Path) -> list[Path]:
    """Return, sorted, the paths of all that is no folder below ``folder``: files, links to files, links to nothing."""
    return sorted(place / name for place, names in folders_below(folder, without) for name in names)

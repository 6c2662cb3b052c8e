"""Files: strict JSON, atomic writes, hashes, folder listings."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .errors import InputError


def at_home(path: str) -> str:
    """Expand a leading ``~`` or ``~user`` in ``path``. Raises ValueError if there is no such home directory."""
    whole = os.path.expanduser(path)  # noqa: PTH111  (pathlib takes ./~ for ~)
    if whole.startswith("~"):
        raise ValueError(f"{path.partition('/')[0]} is no home directory here; if it is a file's name, write ./{path}")
    return whole


def strict(value: Any) -> Any:
    """A copy of nested dicts, lists and tuples with NaN and infinities as the strings "NaN", "Infinity" and "-Infinity"."""
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def flush_to_disk(path: Path) -> None:
    """Have the system write a file, or a folder's list of entries, to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, temporary: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill ``temporary``, then rename it: a reader sees the old file or the new one, even after a power cut."""
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Create or replace ``path`` with what ``write`` writes, and create its parent folders. Raises :class:`InputError` if
    the folder cannot be created or the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not a name drawn by tempfile, which would give mode 0600 whatever the umask.
        replace_file(path, path.with_name(f".{path.name}.{os.getpid()}.tmp"), write)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); give another --out") from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 ``text`` atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as strict, indented JSON; non-finite numbers become strings, as in a run's metrics."""
    write_text(path, json.dumps(strict(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no spaces), in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def folders_below(folder: Path, without: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield ``folder`` and all folders below it, in a fixed order, with the names of their entries that are not folders.

    Links are followed, but each folder is entered only once, so loops end. ``without`` is skipped. Raises InputError for a
    folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}")

    entered = {os.path.realpath(without)}
    for place, subfolders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(place)
        if real in entered:
            subfolders.clear()
            continue
        entered.add(real)
        subfolders.sort()
        yield Path(place), names


def paths_below(folder: Path, without: Path) -> list[Path]:
    """Sorted paths of everything below ``folder`` that is not a folder: files and links, broken ones too."""
    return sorted(place / name for place, names in folders_below(folder, without) for name in names)

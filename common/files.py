"""What all rooms share about files: strict JSON, and writes that survive a power cut."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .errors import InputError

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


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it; the parent folders are made.

    Raises :class:`InputError` if the folder cannot be made or the file cannot be written.
    """
    # The name is not drawn by tempfile: that would give mode 0600 whatever the umask.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                write(file)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); give another --out") from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 ``text`` atomically."""
    write_atomically(path, lambda file: _write_bytes(file, text.encode()))


def _write_bytes(file: BinaryIO, data: bytes) -> None:
    file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as strict, indented JSON; non-finite numbers become the strings a run's metrics use for them."""
    write_text(path, json.dumps(strict(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


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

"""Writing results: strict JSON, and files that are complete or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from configs.errors import InputError
from configs.files import strict


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

"""Event files of TensorBoard, and folders of them: the scalars. Needs the package tensorboard, for its message formats."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import InputError

from .base import FORMATS, Format, Rows, RowsBuilder, open_error

_MARK = b"brain.Event:"
"""In the first record of every event file."""
NAMED = "tfevents"
"""In the name of every event file: by it TensorBoard itself finds them in a folder."""
_LENGTH = struct.Struct("<Q")
_FRAME = 16
"""Bytes around a record: its length with a checksum, and a checksum."""
_SCALAR_TYPES = {1: "float_val", 2: "double_val", 3: "int_val", 9: "int64_val"}
"""Fields of TensorFlow's tensors by type."""
_FORMATS = {1: "<f", 2: "<d", 3: "<i", 9: "<q"}


def is_event_file(path: Path) -> bool:
    """Whether a file begins as an event file does; not, if it cannot be read."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return _MARK in file.read(64)
    except OSError:
        return False


@FORMATS.register("tensorboard_events")
class TensorBoardEvents(Format):
    """Recognised by the version in the first record."""

    title = "TensorBoard events"

    def lacks(self, path: Path, head: bytes) -> str:
        return "" if _MARK in head[:64] else "no first record with a version"

    def read(self, path: Path) -> list[Rows]:
        """The scalars of a file, or of all event files directly in a folder, in the order in which they were begun."""
        try:
            from tensorboard.compat.proto.event_pb2 import Event
        except ImportError as error:
            raise InputError(
                f"{path}: TensorBoard events need the package tensorboard: pip install tensorboard"
            ) from error
        files = sorted(_event_files(path)) if path.is_dir() else [path]
        builder = RowsBuilder()
        begun = []
        for file in files:
            first = next(_records(file), b"")
            begun.append((Event.FromString(first).wall_time, file))
        for _, file in sorted(begun):
            for record in _records(file):
                event = Event.FromString(record)
                numbers = dict(_scalars(event))
                if numbers:
                    builder.add({"step": float(event.step), **numbers})
        return [builder.rows()] if builder.count else []


def _event_files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if NAMED in path.name and is_event_file(path))


def _records(path: Path) -> Iterator[bytes]:
    """The records of an event file; a torn last one is left out."""
    try:
        with path.open("rb") as file:
            while len(head := file.read(12)) == 12:
                (length,) = _LENGTH.unpack_from(head)
                body = file.read(length + 4) if length < 2**31 else b""
                if len(body) < length + 4:
                    return
                yield body[:-4]
    except OSError as error:
        raise open_error(path, error) from error


def _scalars(event: Any) -> Iterator[tuple[str, float]]:
    for value in event.summary.value:
        kind = value.WhichOneof("value")
        if kind == "simple_value":
            yield value.tag, value.simple_value
        elif kind == "tensor" and (number := _scalar(value.tensor)) is not None:
            yield value.tag, number


def _scalar(tensor: Any) -> float | None:
    """The number of a tensor of one element; None for any other."""
    field = _SCALAR_TYPES.get(tensor.dtype)
    if field is None or any(dimension.size != 1 for dimension in tensor.tensor_shape.dim):
        return None
    values = getattr(tensor, field)
    if len(values) == 1:
        return float(values[0])
    content = tensor.tensor_content
    form = _FORMATS[tensor.dtype]
    return float(struct.unpack(form, content)[0]) if len(content) == struct.calcsize(form) else None

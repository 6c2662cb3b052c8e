"""A JSON document: a list of rows, or an object with a list for each column."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from common.errors import InputError

from .base import FORMATS, Format, Rows, RowsBuilder, add_object, flat, open_error
from .text import first_lines


@FORMATS.register("json_document")
class JsonDocument(Format):
    """Recognised by being one JSON value, that is or has a list of objects, or has lists of numbers of the same length."""

    title = "JSON document"
    order = 1

    def lacks(self, path: Path, head: bytes) -> str:
        if not first_lines(head) or head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] not in (b"{", b"["):
            return "it does not begin with a brace or a bracket"
        try:
            return "" if next(_rows(load(path)), None) else "it has neither a list of objects nor lists of numbers"
        except InputError as error:
            return str(error).partition(": ")[2]

    def read(self, path: Path) -> list[Rows]:
        builder = RowsBuilder()
        for row in _rows(load(path)):
            add_object(builder, row)
        return [builder.rows()] if builder.count else []


def load(path: Path) -> Any:
    """The value of a JSON file. Raises :class:`InputError`, one line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise open_error(path, error) from error
    try:
        return orjson.loads(data)
    except ValueError:
        pass
    try:
        return json.loads(data)  # NaN and Infinity, as Python writes them
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: it is not one JSON value ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _rows(value: Any) -> Iterator[dict[str, Any]]:
    """The rows in a document."""
    if isinstance(value, list):
        yield from (row for row in value if isinstance(row, dict))
    elif isinstance(value, dict):
        lists = {name: items for name, items in flat(value) if isinstance(items, list) and items}
        objects = [items for items in lists.values() if all(isinstance(item, dict) for item in items)]
        if objects:
            yield from max(objects, key=len)
            return
        lengths = [len(items) for items in lists.values()]
        longest = max(lengths, default=0)
        columns = {name: items for name, items in lists.items() if len(items) == longest}
        if len(columns) > 1:
            yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))

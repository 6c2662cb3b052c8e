"""JSON Lines: an object a line, as this project, W&B's offline files, LitGPT and most scripts write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson

from .base import FORMATS, Format, Rows, RowsBuilder, add_object, flat, number_in, open_error
from .text import first_lines

_EXAMINED = 50
"""Lines of which at least half must be objects."""


@FORMATS.register("jsonl")
class JsonLines(Format):
    """Recognised by its first lines: at least half are JSON objects, and one of them has a number."""

    title = "JSONL"

    def lacks(self, path: Path, head: bytes) -> str:
        lines = first_lines(head)[:_EXAMINED]
        objects = [row for row in map(parsed, lines) if isinstance(row, dict)]
        if 2 * len(objects) < len(lines) or not objects:
            return "most of its first lines are no JSON objects"
        if not any(number_in(value) is not None for row in objects for _, value in flat(row)):
            return "its objects have no numbers"
        # A document on one line: json_document.py reads it.
        return "it is a single object with lists" if len(lines) == 1 and _has_lists(objects[0]) else ""

    def read(self, path: Path) -> list[Rows]:
        builder, others = RowsBuilder(), 0
        try:
            with path.open("rb") as file:
                for line in file:
                    row = parsed(line)
                    if isinstance(row, dict):
                        add_object(builder, row)
                    elif line.strip():
                        others += 1
        except OSError as error:
            raise open_error(path, error) from error
        remarks = [f"{others:,} {'line' if others == 1 else 'lines'} of no JSON object passed over"] if others else []
        return [builder.rows(remarks=remarks)] if builder.count else []


def parsed(line: bytes) -> Any:
    """The value of a line; None if it is not JSON. NaN and Infinity, as Python writes them, are numbers."""
    if not line.lstrip(b"\xef\xbb\xbf \t").startswith(b"{"):
        return None
    try:
        return orjson.loads(line)
    except ValueError:
        pass
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _has_lists(row: dict[str, Any]) -> bool:
    return any(isinstance(value, list) and value for _, value in flat(row))

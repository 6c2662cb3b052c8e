"""trainer_state.json of transformers' Trainer: its log_history has a row for each log, each evaluation and the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.errors import InputError

from .base import FORMATS, Format, Rows, RowsBuilder, add_object
from .json_document import load
from .text import first_lines

_KEY = b'"log_history"'


@FORMATS.register("trainer_state")
class TrainerState(Format):
    """Recognised by a JSON object with ``log_history``."""

    title = "transformers trainer_state"

    def lacks(self, path: Path, head: bytes) -> str:
        return "" if first_lines(head) and head.lstrip().startswith(b"{") and _KEY in head else "no log_history in it"

    def read(self, path: Path) -> list[Rows]:
        builder = RowsBuilder()
        for row in history(path):
            add_object(builder, row)
        return [builder.rows()] if builder.count else []


def history(path: Path) -> list[dict[str, Any]]:
    """The rows of a trainer's state. Raises :class:`InputError`, one line, for a file of another shape."""
    state = load(path)
    rows = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(rows, list):
        raise InputError(
            f"{path}: transformers trainer_state, but its log_history is no list of rows; name another file"
        )
    return [row for row in rows if isinstance(row, dict)]

"""Folders that hold a log: checkpoints and output folders of transformers' Trainer, TensorBoard's, Lightning's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.errors import InputError

from .base import number_in
from .tensorboard_events import NAMED, is_event_file
from .trainer_state import history

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_DEPTH = 4
"""Folders below one another in which event files are looked for."""
_MOST = 20_000
"""Entries after which the search ends: it is no folder of a log."""


def logs_in(folder: Path) -> Sequence[Path]:
    """The files of a folder that are its log, or the folders of event files in it. Raises :class:`InputError`, one line, if there
    are none."""
    try:
        for found in (_trainer_state(folder), _metrics(folder), list(_event_folders(folder))):
            if found:
                return found
    except OSError as error:
        raise InputError(f"{error.filename or folder} cannot be read ({error.strerror})") from error
    raise InputError(
        f"{folder} is no run directory (config.yaml, metrics.jsonl), and no log was found in it (trainer_state.json of "
        "transformers, metrics.csv of Lightning, event files of TensorBoard); name a log's file"
    )


def _trainer_state(folder: Path) -> list[Path]:
    """The state of a checkpoint, or of the newest checkpoint of an output folder."""
    checkpoints = [(int(match[1]), path) for path in folder.iterdir() if (match := _CHECKPOINT.fullmatch(path.name))]
    states = [
        folder / "trainer_state.json",
        *(path / "trainer_state.json" for _, path in sorted(checkpoints, reverse=True)),
    ]
    there = [path for path in states if path.is_file()]
    return sorted(there, key=_last_step, reverse=True)[:1]


def _last_step(state: Path) -> float:
    """The last step of a trainer's state: an output folder's own may be older than a checkpoint after it."""
    return max((number_in(row.get("step")) or 0.0 for row in history(state)), default=0.0)


def _metrics(folder: Path) -> list[Path]:
    path = folder / "metrics.csv"
    return [path] if path.is_file() else []


def _event_folders(folder: Path) -> Iterator[Path]:
    """The folders that have event files. Only files named as TensorBoard names them are opened: some of a system's own folders
    hold files that never answer."""
    seen = 0
    for place, folders, files in os.walk(folder):
        here = Path(place)
        seen += len(files) + len(folders)
        if seen > _MOST or len(here.relative_to(folder).parts) >= _DEPTH:
            folders.clear()
        folders.sort()
        if any(NAMED in name and is_event_file(here / name) for name in files):
            yield here

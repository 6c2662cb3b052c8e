"""Whether a run directory is new, finished, or to be gone on with, and from where."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.load import load_config
from configs.schema import RunConfig

from .checkpoints import list_checkpoints

FREE_KEYS = (
    "output_dir",
    "resume",
    "checkpoint",
    "trackers",
    "telemetry.flush_every",
    "data.cache_dir",
)
"""What may change between a run and its continuation: none of it changes the curves."""
REWIND_KEYS = ("checkpoint", "telemetry.flush_every")
"""Those of them that do change what a run with interventions does."""


@dataclass(frozen=True)
class ResumePoint:
    """Where to begin: at a checkpoint, at the start (None), or nowhere because the run is finished."""

    checkpoint: Path | None = None
    finished: bool = False


def find_resume_point(config: RunConfig, directory: Path) -> ResumePoint:
    """Look at the run directory. Raises InputError for what ``resume`` forbids and for a run of another configuration."""
    checkpoints = list_checkpoints(directory)
    status_file = directory / "status.json"
    if config.resume == "never" and status_file.exists():
        raise InputError(f"{directory}: holds a run already; choose another name, or resume=auto to go on with it")
    if config.resume == "must" and not checkpoints:
        raise InputError(f"{directory}: resume=must, but there is no complete checkpoint to go on from")
    if not status_file.exists():
        return ResumePoint()
    _refuse_other_configuration(config, directory)
    status = json.loads(status_file.read_text(encoding="utf-8"))["status"]
    return ResumePoint(checkpoints[-1] if checkpoints else None, finished=status == "finished")


def _refuse_other_configuration(config: RunConfig, directory: Path) -> None:
    before, now = flat(load_config(directory / "config.yaml").model_dump()), flat(config.model_dump())
    free_keys = [key for key in FREE_KEYS if not (config.interventions and key in REWIND_KEYS)]
    differing = [
        f"{key}: the run in {directory} was begun with {before.get(key)!r}, not {now.get(key)!r}; choose another name"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not any(key == free or key.startswith(f"{free}.") for free in free_keys)
    ]
    if differing:
        raise InputError(*differing)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    items: dict[str, Any] = {}
    for key, value in tree.items():
        items |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return items

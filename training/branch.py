"""Branching: a run that begins at a checkpoint of another one, so that arms differ in nothing but what their recipes change.

The checkpoint is copied into the run's directory, as ``branch_point/step_N``: whatever becomes of the other run, this one can
be resumed, rewound and replayed from there.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common.errors import InputError, note
from common.files import sha256_of
from common.section import flat
from configs.kinds import check_kinds
from configs.schema import RunConfig
from data.batches import batch_number
from record.checkpoints import list_checkpoints, read_state, start_of, step_of
from record.integrity import MANIFEST_FILE, damage
from record.recorder import Recorder
from record.rewinds import last_rewind
from record.rows import BRANCH_FOLDER, BRANCH_ROWS, Row, json_line, read_rows, rows_up_to
from stability.detect.precursors import LOOK_BACK
from stability.stress.base import STRESSES

from .resume import FREE_KEYS

SAME = ("data", "body", "head", "optimizer.kind", "train.batch_size")
"""Keys that a branch shares with the run it comes from: what the checkpoint holds depends on them."""
FREE = ("data.cache_dir", "data.skip_steps")


def begin_branch(config: RunConfig, directory: Path) -> None:
    """Copy the checkpoint that ``branch_from`` names into the run's directory, once. Main process only. Raises InputError if
    there is no such checkpoint, or if the run cannot go on from it."""
    if config.branch_from is None or start_of(directory) is not None:
        return
    run, step = branch_point(config.branch_from)
    found = {step_of(path): path for path in list_checkpoints(run)}
    if step not in found:
        steps = ", ".join(map(str, found)) or "none"
        raise InputError(f"branch_from: {config.branch_from}: no checkpoint of step {step}; the run has {steps}")
    checkpoint = found[step]
    if problem := damage(checkpoint):
        raise InputError(f"branch_from: {checkpoint} cannot be used: {problem}")
    if step >= config.train.steps:
        raise InputError(f"branch_from: step {step} is not before the last one, train.steps={config.train.steps}")
    rewind = last_rewind(run, step)  # its batches stay left out
    refuse_past_stresses(config, step, [] if rewind is None else rewind.skipped)
    before = flat(check_kinds(RunConfig.model_validate(read_state(checkpoint)["config"]), recorded=True).model_dump())
    _refuse_other(config, before, checkpoint)
    temporary = directory / f".{BRANCH_FOLDER}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    _copy(checkpoint, temporary / checkpoint.name)
    rows = "".join(json_line(row) + "\n" for row in _rows_before(run, step))
    (temporary / BRANCH_ROWS).write_text(rows, encoding="utf-8")
    recorder = Recorder(directory, writes=True)
    (directory / "events.jsonl").unlink(missing_ok=True)
    if rewind is not None:
        recorder.event("rewind", rewind.to_step, **asdict(replace(rewind, number=0)))  # none of this run's own
    sha256 = sha256_of(checkpoint / MANIFEST_FILE)
    changed = _changed(config, before)
    recorder.event("branch", step, step=step, run=str(run), manifest_sha256=sha256, changed=changed)
    temporary.rename(directory / BRANCH_FOLDER)
    if changed:
        order = "; with another seed the batches come in another order" if "seed" in changed else ""
        note(f"branch_from: other than in {run}: {', '.join(changed)}{order}")


def _rows_before(run: Path, step: int) -> list[Row]:
    """A run's last rows up to ``step``, those before its own branch point included: where a spike soon after is to be judged,
    and its precursors are looked for."""
    own = rows_up_to(run / "metrics.jsonl", step, LOOK_BACK)
    return [*read_rows(run / BRANCH_FOLDER / BRANCH_ROWS), *own][-LOOK_BACK:]


def branch_point(given: str) -> tuple[Path, int]:
    """The run directory and the step in ``RUN@STEP``. Raises InputError if it is neither."""
    run, _, step = given.rpartition("@")
    if not run or not step.isdecimal():
        raise InputError(f"branch_from: {given}: give a run directory and a step, as runs/calm@500")
    if not (Path(run) / "config.yaml").is_file():
        raise InputError(f"branch_from: {run} is no run directory: it has no config.yaml")
    return Path(run), int(step)


def refuse_past_stresses(config: RunConfig, step: int, rewound: list[list[int]]) -> None:
    """Raise InputError for a stress that is over where a branch begins. ``rewound``: batches that its run has left out."""
    drawn = batch_number(step, [*config.data.skip_steps, *rewound])
    for number, choice in enumerate(config.stress):
        first, steps = choice.options["step"], choice.options["steps"]
        batches = STRESSES[choice.kind].counts == "batches"
        if steps is not None and first + steps - 1 <= (drawn if batches else step):
            where = f"step {step}" + (f" (batch {drawn})" if batches and drawn != step else "")
            raise InputError(f"stress.{number}.step: {first} is over at {where}, where the branch begins")


def _changed(config: RunConfig, before: dict[str, Any]) -> list[str]:
    """The keys in which a branch differs from the run that it comes from, and which may change what it does."""
    now, free = flat(config.model_dump()), ("name", "branch_from", *FREE_KEYS)
    return [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not any(f"{key}.".startswith(f"{one}.") for one in free)
    ]


def _refuse_other(config: RunConfig, before: dict[str, Any], checkpoint: Path) -> None:
    now = flat(config.model_dump())
    differing = [
        f"{key}: {checkpoint} was written with {before.get(key)!r}, and a branch from it cannot have {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
        and key not in FREE
        and any(f"{key}.".startswith(f"{same}.") for same in SAME)
    ]
    if differing:
        raise InputError(*differing)


def _copy(checkpoint: Path, place: Path) -> None:
    """The same files under another name if the file system allows it, since checkpoints are never changed; else copies."""

    def link(source: str, target: str) -> str:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)
        return target

    shutil.copytree(checkpoint, place, copy_function=link)

"""The configurations of a suite's runs, checked before the first one starts, and how far each of them is already."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.errors import InputError
from configs.load import load_config
from configs.schema import RunConfig
from record.checkpoints import checkpoint_at, same_checkpoint, start_of
from record.rows import ENDED, status_of
from training.branch import refuse_past_stresses
from training.resume import find_resume_point


@dataclass(frozen=True)
class Prospect:
    """What is to be expected of a run."""

    steps: int
    """Its last step."""
    ended: str | None
    """finished or diverged, with this configuration, if it need not be started."""


@dataclass
class Checked:
    """All runs' prospects, or what is wrong with them."""

    prospects: dict[str, Prospect] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)
    """The runs that each mistake is in."""
    notes: list[str] = field(default_factory=list)
    """What loading the configurations printed, each line once."""


def check(
    recipe: Path,
    overrides: Mapping[str, Sequence[str]],
    parents: Mapping[str, tuple[str, int]],
    out: Path,
    tell: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Load the configuration of each run; returns a :class:`Checked` as a dictionary.

    ``parents``: for a branch the run that it begins at, and the step. ``tell`` is told how many are done.
    """
    found, configs = Checked(), dict[str, RunConfig]()
    for number, (name, own) in enumerate(overrides.items()):
        tell(number)
        said, problems = io.StringIO(), list[str]()
        try:
            with contextlib.redirect_stderr(said):
                configs[name] = config = load_config(recipe, own)
            kept = {"name": config.name == name, "output_dir": Path(config.output_dir) == out}
            problems = [f"{key}: a suite sets it itself; leave it out" for key, same in kept.items() if not same]
            if name in parents:
                refuse_past_stresses(config, parents[name][1], [])
                problems += _other_start(out, name, *parents[name])
            if not problems:
                found.prospects[name] = Prospect(config.train.steps, _ended(config, out / name))
        except InputError as error:
            problems += error.problems
        for problem in problems:
            found.problems.setdefault(problem, []).append(name)
        found.notes += [line for line in said.getvalue().splitlines() if line not in found.notes]
    for name, (parent, step) in parents.items():
        if parent in configs:
            begin = parents[parent][1] if parent in parents else 0
            for problem in _without_checkpoint(configs[parent], begin, step):
                found.problems.setdefault(problem, []).append(name)
    return asdict(found)


def _ended(config: RunConfig, directory: Path) -> str | None:
    """How a run with this configuration has ended. Raises InputError if the directory holds another one."""
    status = status_of(directory)
    if status not in ENDED:  # one that cannot be read: the run itself says what is wrong with it
        return None
    find_resume_point(config, directory)
    return status


def _other_start(out: Path, branch: str, parent: str, step: int) -> Iterator[str]:
    """Why a branch that has begun is none of its parent, which now has another checkpoint, or will have once it is trained again.
    A parent that has ended may have lost its checkpoints: that changes nothing."""
    start, now = start_of(out / branch), checkpoint_at(out / parent, step)
    if start is None:
        return
    if not same_checkpoint(start, now) if now.exists() else status_of(out / parent) not in ENDED:
        yield (
            f"branch_from: {parent} is not what they began at any more (deleted, or trained anew); delete their folders in "
            f"{out}/ too, and they are run again"
        )


def _without_checkpoint(parent: RunConfig, begin: int, step: int) -> Iterator[str]:
    """Why a run that begins after step ``begin`` has no checkpoint of ``step`` at its end."""
    every, steps, keep = parent.checkpoint.every, parent.train.steps, parent.checkpoint.keep
    kept = steps // every - step // every + 1
    if step >= steps:
        yield f"branch_from: step {step} is not before the last of the run it begins at, train.steps={steps}"
    elif step < begin:
        yield f"branch_from: step {step} is before the one at which the run it begins at is a branch itself, {begin}"
    elif step == 0 or step % every:
        yield f"branch_from: step {step} is no multiple of checkpoint.every={every}"
    elif kept > keep:
        yield f"branch_from: the checkpoint of step {step} is deleted before the run ends; set checkpoint.keep={kept}"

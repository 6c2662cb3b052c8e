"""Whether a run directory is new, finished or to be resumed, and from which checkpoint."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.section import flat
from configs.body import unstated_sizes
from configs.kinds import check_kinds
from configs.load import load_config
from configs.schema import RunConfig
from record.checkpoints import checkpoint_at, list_checkpoints, read_state, same_checkpoint, start_of, step_of
from record.integrity import damage
from record.rows import read_rows, rows_backwards

FREE_KEYS = (
    "output_dir",
    "resume",
    "checkpoint",
    "trackers",
    "tracking",
    "telemetry.flush_every",
    "data.cache_dir",
    "train.kernel",
    "train.micro_batch_size",
    "train.stall_seconds",
)
"""Keys that may change when a run is resumed: they do not change the curves, or only by rounding. (With dropout, its random
numbers depend on the micro-batches, as on the number of ranks.)"""
REWIND_KEYS = ("checkpoint", "telemetry.flush_every")
"""Those that do change a run with interventions."""


@dataclass(frozen=True)
class ResumePoint:
    """Where to begin: at the checkpoint of a step, at the start (0), or nowhere because the run is finished."""

    step: int = 0
    finished: bool = False
    rejected: list[dict[str, str]] = field(default_factory=list)
    """Newer checkpoints that cannot be used: {"checkpoint": its name, "problem": why}."""


def find_resume_point(config: RunConfig, directory: Path) -> ResumePoint:
    """Inspect the run directory. Main process only. Raises InputError for what ``resume`` forbids, and for a run or a
    checkpoint with another configuration."""
    status_file, checkpoints = directory / "status.json", list_checkpoints(directory)
    if config.resume == "never" and (status_file.exists() or checkpoints):
        raise InputError(f"{directory}: holds a run already; choose another name, or resume=auto to go on with it")
    if config.resume == "must" and not checkpoints:
        raise InputError(f"{directory}: resume=must, but there is no complete checkpoint to go on from")
    if not status_file.exists() and not checkpoints:
        return ResumePoint()
    before = load_config(directory / "config.yaml", recorded=True).model_dump()
    _refuse_changes(config, before, f"the run in {directory}", also_free=_moved(config, before, directory))
    try:
        read_rows(directory / "events.jsonl")
    except ValueError as error:
        raise InputError(f"{error}; delete that line, or choose another name") from None
    if status_file.exists() and _read_status(status_file) == "finished":
        return ResumePoint(config.train.steps, finished=True)
    return _newest_whole(config, directory)


def _newest_whole(config: RunConfig, directory: Path) -> ResumePoint:
    rejected: list[dict[str, str]] = []
    rows_lost = False
    for checkpoint in reversed(list_checkpoints(directory)):
        damaged = damage(checkpoint)
        if damaged is None and (step := read_state(checkpoint)["step"]) != step_of(checkpoint):
            damaged = f"it was written after step {step}"
        problem = damaged or _missing_rows(directory, step_of(checkpoint))
        if problem is None:
            state = read_state(checkpoint)
            where = f"the checkpoint {checkpoint.name} in {directory}"
            # With the keys that the schema has gained since.
            before = check_kinds(RunConfig.model_validate(state["config"]), recorded=True).model_dump()
            _refuse_changes(config, before, where, also_free=("name", *_moved(config, before, directory)))
            return ResumePoint(state["step"], rejected=rejected)
        rejected.append({"checkpoint": checkpoint.name, "problem": problem})
        rows_lost = rows_lost or damaged is None
    if rows_lost:
        raise InputError(
            f"{directory / 'metrics.jsonl'}: its rows end before the first whole checkpoint; restore it, or choose another name"
        )
    if rejected and config.resume == "must":
        reasons = "; ".join(f"{each['checkpoint']}: {each['problem']}" for each in rejected)
        raise InputError(f"{directory}: resume=must, but no checkpoint can be used ({reasons})")
    return ResumePoint(rejected=rejected)


def _moved(config: RunConfig, other: dict[str, Any], directory: Path) -> tuple[str, ...]:
    """("branch_from",) if it is written differently than in ``other`` and still means what this run began at: suites are moved,
    and their paths spelled in several ways. If the checkpoint is there no more, the name of its run decides."""
    start = start_of(directory)
    if start is None or config.branch_from is None or other["branch_from"] is None:
        return ()
    (before, _, old_step), (now, _, step) = other["branch_from"].rpartition("@"), config.branch_from.rpartition("@")
    if step != old_step:
        return ()
    checkpoint = checkpoint_at(Path(now), step_of(start))
    by_name = not checkpoint.exists() and Path(now).name == Path(before).name
    same = Path(now).resolve() == Path(before).resolve() or same_checkpoint(checkpoint, start) or by_name
    return ("branch_from",) if same else ()


def _missing_rows(directory: Path, step: int) -> str | None:
    """What is wrong with a checkpoint if metrics.jsonl ends before its step: the resumed run would have a gap."""
    path = directory / "metrics.jsonl"
    try:
        last = next((row["step"] for _, row in rows_backwards(path)), 0)
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{path}: its last rows cannot be read ({error}); restore the file, or choose another name"
        ) from None
    return f"the rows of steps {last + 1} to {step} are missing in metrics.jsonl" if last < step else None


def _read_status(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["status"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); restore it, or choose another name") from None


def _or_branch(key: str) -> str:
    """How a run is made longer: its schedule may depend on its length, so that it is another run."""
    return ", with branch_from=RUN@STEP to go on from a checkpoint of this one" if key == "train.steps" else ""


def _refuse_changes(config: RunConfig, other: dict[str, Any], where: str, also_free: tuple[str, ...] = ()) -> None:
    before, now = flat(other), flat(config.model_dump())
    if config.body.model_type is not None and before.get("body.model_type") == config.body.model_type:
        # An older run may have left sizes to transformers.
        unstated = unstated_sizes(config.body.model_type, other["body"])
        before |= {f"body.{name}": size for name, size in unstated.items()}
    free_keys = [*also_free, *(key for key in FREE_KEYS if not (config.interventions and key in REWIND_KEYS))]
    differing = [
        f"{key}: {where} was begun with {before.get(key)!r}, not {now.get(key)!r}; choose another name{_or_branch(key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not any(key == free or key.startswith(f"{free}.") for free in free_keys)
    ]
    if differing:
        raise InputError(*differing)

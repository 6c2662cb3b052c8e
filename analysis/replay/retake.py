"""Taking steps of a run again and comparing them with its log."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import InputError
from common.imports import importing
from configs.load import load_recorded
from record.finished import Run as LoggedRun
from record.finished import run_file

if TYPE_CHECKING:
    from data.store import TokenStore
    from training.run import Run


LOOSE = 1e-3
"""Relative tolerance where the replay does not run as the run did: another device, precision or number of processes."""
MOST_PROCESSES = 1 << 20
"""No run has more processes or threads."""
_FACTS: dict[tuple[str, ...], type] = {
    ("device", "type"): str,
    ("device", "name"): str,
    ("threads",): int,
    ("world_size",): int,
    ("packages", "torch"): str,
    ("data", "path"): str,
    ("data", "store"): str,
    ("data", "manifest_sha256"): str,
}
"""What a replay reads of environment.json."""
NOT_REPLAYED = ("throughput/", "memory/", "validation/")


def open_replay(logged: LoggedRun, step: int) -> Run:
    """The run at its nearest checkpoint before ``step``, on one process; nothing is written to its directory."""
    with importing():
        import torch

        from ranks.launch import start_accelerator
        from record.checkpoints import checkpoint_before
        from record.integrity import damage
        from record.rewinds import last_rewind
        from training.run import build_run
    config = load_recorded(logged.path).model_copy(update={"trackers": []})
    facts = environment_of(logged)
    if facts["device"]["type"] == "cpu":
        torch.set_num_threads(facts["threads"])
    if config.train.precision == "fp16":
        raise InputError(f"{logged.path}: a run in fp16 cannot be replayed, its gradient scale is not kept")
    checkpoint, store = checkpoint_before(logged.path, step), _recorded_store(logged, config.data.cache_dir)
    if checkpoint is not None and (problem := damage(checkpoint)):
        raise InputError(f"{checkpoint} cannot be used: {problem}; rename it, and the one before it is")
    run = build_run(
        config,
        start_accelerator(
            config.train.precision, batch_size=config.train.batch_size, stall_seconds=config.train.stall_seconds
        ),
        logged.path,
        checkpoint,
        writes=False,
        store=store,
    )
    run.rewind = last_rewind(logged.path)  # what it skipped in the end holds for every step before, too
    return run


def _recorded_store(logged: LoggedRun, cache_dir: str) -> TokenStore:
    """The tokens of the run, where it found them or where its configuration leads from here."""
    from data.store import read_store

    recorded = environment_of(logged)["data"]
    for path in (Path(recorded["path"]), Path(cache_dir) / recorded["store"]):
        if path.is_dir() and (store := read_store(path)).manifest_hash() == recorded["manifest_sha256"]:
            return store
    raise InputError(f"{logged.path}: the tokens it was made of are not in {recorded['path']} any more; restore them")


def environment_of(logged: LoggedRun) -> dict[str, Any]:
    """What the run ran on. Raises InputError if environment.json is missing, or a fact in it that a replay needs."""
    path = run_file(logged.path, "environment.json")
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise InputError(f"{path} is missing or not JSON; it names the tokens that the run was made of") from None
    for keys, kind in _FACTS.items():
        value: Any = facts
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if type(value) is not kind or (isinstance(value, int) and not 1 <= value <= MOST_PROCESSES):
            raise InputError(f"{path}: {'.'.join(keys)} cannot be read; restore the file")
    if Path(facts["data"]["store"]).name != facts["data"]["store"]:
        raise InputError(f"{path}: data.store is not the name of a folder; restore the file")
    return facts


def tolerance_for(run: Run, logged: LoggedRun) -> tuple[float, str]:
    """Relative tolerance of the comparison with the log, and why it is not 0."""
    from record.environment import environment

    then = environment_of(logged)
    now = environment(run.accelerator.num_processes, run.accelerator.device, run.config.train.precision)
    differing = [
        f"{name} was {then[key]} and is {now[key]}"
        for name, key in (("the number of processes", "world_size"), ("the number of threads", "threads"))
        if then[key] != now[key]
    ]
    if then["world_size"] != now["world_size"]:
        differing.append("dropout, if any, draws by process")
    if then["device"] != now["device"]:
        differing.append(f"the device was {then['device']['name']} and is {now['device']['name']}")
    if then["packages"]["torch"] != now["packages"]["torch"]:
        differing.append(f"torch was {then['packages']['torch']} and is {now['packages']['torch']}")
    if now["device"]["type"] != "cpu":
        differing.append("kernels on a GPU may add in any order")
    return (LOOSE if differing else 0.0), "; ".join(differing)


def replay(run: Run, last: int) -> Iterator[dict[str, Any]]:
    """Take the steps up to ``last``; yields each step's metrics."""
    from training.step import training_step

    while run.step < last:
        training_step(run, run.step + 1)
        yield from run.recorder.transfer().rows


def compare(logged: LoggedRun, row: dict[str, Any], tolerance: float) -> list[str]:
    """The metrics that a replayed row and the log tell otherwise, or that only one of them has, as "step N: name"."""
    step = row["step"]
    if step not in logged.metrics.index:
        return []
    found = []
    for name in dict.fromkeys([*row, *logged.metrics.columns]):
        then = logged.value(name, step)
        # Runs did not log them once; such a run may have gone on since.
        older = name.startswith("intervention/") and (
            name not in logged.metrics or logged.metrics.loc[:step, name].isna().all()
        )
        if older or name.startswith(NOT_REPLAYED) or (then is None and name not in row):
            continue
        if then is None or name not in row:
            found.append(f"step {step}: {name} ({'not logged' if then is None else 'not measured by the replay'})")
        elif not agrees(then, row[name], tolerance):
            found.append(f"step {step}: {name}")
    return found


def agrees(logged: float, replayed: float, tolerance: float) -> bool:
    """Equal, both NaN, or within the relative tolerance."""
    if math.isnan(logged) or math.isnan(replayed):
        return math.isnan(logged) and math.isnan(replayed)
    return logged == replayed or math.isclose(logged, replayed, rel_tol=tolerance, abs_tol=tolerance * 1e-3)

"""Running steps of a run again, as they were or with one thing changed, and comparing them with the log."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from common.errors import InputError
from configs.load import load_recorded
from configs.schema import RunConfig
from data.batches import batch_number
from data.store import TokenStore, read_store
from model.modeling import build
from model.registry import OBJECTIVES
from ranks.launch import start_accelerator
from record.checkpoints import checkpoint_before
from record.environment import environment
from record.finished import Run as LoggedRun
from record.finished import run_file
from record.integrity import damage
from record.metrics import is_known
from record.rewinds import last_rewind
from stability.stress.base import Stress
from training.run import Run, attach_interventions, build_run, interventions_of, interventions_state, load_interventions
from training.step import disturb_state, training_step

from .explanation import Counterfactual

LOOSE = 1e-3
"""Relative tolerance where the replay runs differently: another device or number of processes."""
LOOSE_HALF = 1e-2
"""The same in half precision, which rounds what hardly differs to different numbers."""
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
"""What a replay needs from environment.json."""
NOT_REPLAYED = ("throughput/", "memory/", "validation/")
ONLY_SOMETIMES = ("edge/", "adam/", "adam_rms/", "update_ratio/", "noise/")
"""Measured at more steps by a replay, and not at all by older versions."""
METRICS = ("loss/nll", "grad_norm/total")
_KEYS = {"clip": "optimizer.clip_norm", "lr": "optimizer.lr", "objective": "objective.kind"}


def open_replay(logged: LoggedRun, step: int) -> Run:
    """The run at its last checkpoint before ``step``, on one process; nothing is written to its directory."""
    config = load_recorded(logged.path).model_copy(update={"trackers": []})
    facts = environment_of(logged)
    if facts["device"]["type"] == "cpu":
        torch.set_num_threads(facts["threads"])
    # "triton" is a demand on the run's own machine; where that kernel works, auto takes it too.
    train = config.train.model_copy(update={"kernel": "torch" if config.train.kernel == "torch" else "auto"})
    config = config.model_copy(update={"train": train})
    if train.precision == "fp16":
        raise InputError(f"{logged.path}: a run in fp16 cannot be replayed, its gradient scale is not kept")
    checkpoint, store = checkpoint_before(logged.path, step), _recorded_store(logged, facts, config.data.cache_dir)
    if checkpoint is not None and (problem := damage(checkpoint)):
        raise InputError(f"{checkpoint} cannot be used: {problem}; rename it, and the one before it will be used")
    accelerator = start_accelerator(train.precision, batch_size=train.batch_size, stall_seconds=train.stall_seconds)
    run = build_run(config, accelerator, logged.path, checkpoint, writes=False, store=store)
    run.rewind = last_rewind(logged.path)  # the batches it skipped in the end were skipped at every earlier step, too
    return run


def _recorded_store(logged: LoggedRun, facts: dict[str, Any], cache_dir: str) -> TokenStore:
    """The run's tokens, from where it found them or from where its configuration points now."""
    recorded = facts["data"]
    for path in (Path(recorded["path"]), Path(cache_dir) / recorded["store"]):
        if path.is_dir() and (store := read_store(path)).manifest_hash() == recorded["manifest_sha256"]:
            return store
    raise InputError(f"{logged.path}: the tokens it was made of are not in {recorded['path']} any more; restore them")


def environment_of(logged: LoggedRun) -> dict[str, Any]:
    """What the run ran on. Raises InputError if environment.json is missing or lacks something that a replay needs."""
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
    then = environment_of(logged)
    now = environment(run.accelerator.num_processes, run.accelerator.device, run.config.train.precision)
    reasons = [
        f"{name} was {then[key]} and is {now[key]}"
        for name, key in (("the number of processes", "world_size"), ("the number of threads", "threads"))
        if then[key] != now[key]
    ]
    if then["world_size"] != now["world_size"]:
        reasons.append("dropout, if any, draws by process")
    if then["device"] != now["device"]:
        reasons.append(f"the device was {then['device']['name']} and is {now['device']['name']}")
    if then["packages"]["torch"] != now["packages"]["torch"]:
        reasons.append(f"torch was {then['packages']['torch']} and is {now['packages']['torch']}")
    recorded = then.get("loss_kernel")  # older runs have none
    kernel = recorded.get("name") if isinstance(recorded, dict) else None
    if kernel not in (None, run.loss_kernel["name"]):
        reasons.append(f"the loss's kernel was {kernel} and is {run.loss_kernel['name']}")
    if now["device"]["type"] != "cpu":
        reasons.append("kernels on a GPU may add in any order")
    loose = LOOSE if run.config.train.precision == "fp32" else LOOSE_HALF
    return (loose if reasons else 0.0), "; ".join(reasons)


def replay_to(run: Run, last: int) -> Iterator[dict[str, Any]]:
    """Take the steps up to ``last``; yields each step's metrics."""
    while run.step < last:
        training_step(run, run.step + 1)
        yield from run.recorder.transfer().rows


@contextlib.contextmanager
def disturbed(run: Run, step: int) -> Iterator[None]:
    """Within the block parameters and moments are those that stresses make of them before ``step``, the next one; afterwards
    they are as before, for the step to disturb them itself."""
    acting = [s for s in run.stresses if s.acts(step, run.batch_number(step)) and type(s).state is not Stress.state]
    slots = run.optimizer.optimizer.state.values() if acting else ()
    moments = [t for slot in slots for t in slot.values() if isinstance(t, torch.Tensor)]
    tensors = [*(run.bare_model().parameters() if acting else ()), *moments]
    kept = [t.detach().clone() for t in tensors]
    disturb_state(run, step)
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, before in zip(tensors, kept, strict=True):
                tensor.copy_(before)


def disagreements(logged: LoggedRun, row: dict[str, Any], tolerance: float) -> list[str]:
    """The metrics in which a replayed row and the log differ, or that only one of them has, as "step N: name"."""
    step = row["step"]
    if step not in logged.metrics.index:
        return []
    found = []
    for name in dict.fromkeys([*row, *logged.metrics.columns]):
        then = logged.value(name, step)
        # Old versions did not log interventions, or under other names; such a run may have been resumed by a newer one.
        unknown = name.startswith("intervention/") and (
            name not in logged.metrics or logged.metrics.loc[:step, name].isna().all()
        )
        if unknown or not is_known(name) or name.startswith(NOT_REPLAYED) or (then is None and name not in row):
            continue
        if then is None and name.startswith(ONLY_SOMETIMES):
            continue
        if tolerance and name.startswith("noise/"):  # another number of ranks has other first micro-batches
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


# ----------------------------------------------------------------------------------------------------- counterfactuals


def changed_config(logged: LoggedRun, step: int, change: str) -> RunConfig:
    """The run's configuration with the change. Raises InputError for an invalid change."""
    kind, _, value = change.partition("=")
    if kind == "skip" and (not value or re.fullmatch(r"0*[1-9][0-9]{0,11}", value)):
        config = load_recorded(logged.path)
        rewind = last_rewind(logged.path)
        first = batch_number(step, [*config.data.skip_steps, *(rewind.skipped if rewind else [])])
        ranges = [*config.data.skip_steps, [first, first + int(value or 1) - 1]]
        return load_recorded(logged.path, [f"data.skip_steps={ranges}"])
    if kind not in _KEYS or not value:
        raise InputError(f"--counterfactual {change}: give skip, skip=K, clip=X, lr=X or objective=KIND")
    return load_recorded(logged.path, [f"{_KEYS[kind]}={value}"])


def load_changed(run: Run, overrides: Sequence[str]) -> RunConfig:
    """The configuration of a replayed run with these overrides, and with what the replay itself has changed in it."""
    changed = load_recorded(run.directory, list(overrides))
    return changed.model_copy(update={"trackers": [], "train": run.config.train})


def snapshot(run: Run, checkpoint: int) -> dict[str, Any]:
    """A copy of everything that steps change. ``checkpoint``: the step that the replay started from."""
    return {
        "checkpoint": checkpoint,
        "step": run.step,
        "model": copy.deepcopy(run.bare_model().state_dict()),
        "optimizer": copy.deepcopy(run.optimizer.optimizer.state_dict()),
        "interventions": copy.deepcopy(interventions_state(run)),
    }


def restore(run: Run, before: dict[str, Any]) -> None:
    """Bring the run to a :func:`snapshot`, with the interventions of its present configuration."""
    run.bare_model().load_state_dict(before["model"])
    run.optimizer.optimizer.load_state_dict(copy.deepcopy(before["optimizer"]))
    attach_interventions(run, interventions_of(run.config))
    load_interventions(run, copy.deepcopy(before["interventions"]))
    run.step = before["step"]
    run.alive = torch.ones_like(run.alive)


def counterfactual(
    run: Run, logged: LoggedRun, before: dict[str, Any], change: str, config: RunConfig, window: int
) -> Counterfactual:
    """Take ``window`` steps from the snapshot ``before`` with the changed ``config``, beside the logged ones.

    Values are aligned by batch: where one is skipped, the changed run sees the following ones a step earlier.
    """
    first = before["step"] + 1
    last = min(first + window - 1, config.train.steps)
    factual_config, factual_objective = run.config, run.bare_model().objective
    batch_of = {s: run.batch_number(s) for s in range(first, last + 1)}
    run.config = config
    restore(run, before)
    if config.objective != factual_config.objective:
        run.bare_model().objective = build(OBJECTIVES, {"kind": config.objective.kind, **config.objective.options})
    try:
        by_batch: dict[int, dict[str, Any]] = {}
        while run.step < last and run.batch_number(run.step + 1) <= batch_of[last]:
            training_step(run, run.step + 1)
            by_batch |= {row["data/batch"]: row for row in run.recorder.transfer().rows}
    finally:
        run.config, run.bare_model().objective = factual_config, factual_objective
    earlier = [int(s) for s in logged.metrics.loc[: first - 1].tail(20).index]
    factual = {name: [logged.value(name, s) for s in (*earlier, *batch_of)] for name in METRICS}
    changed = {
        name: factual[name][: len(earlier)] + [by_batch[b][name] if b in by_batch else None for b in batch_of.values()]
        for name in METRICS
    }
    return Counterfactual(
        logged.name,
        change,
        _meaning(change, first),
        before["checkpoint"],
        first,
        last,
        [*earlier, *batch_of],
        factual,
        changed,
    )


def _meaning(change: str, step: int) -> str:
    kind, _, value = change.partition("=")
    if kind == "skip" and value in ("", "1"):
        return f"without the batch of step {step}"
    return {
        "skip": f"without {value} batches, from that of step {step} on",
        "clip": f"gradient norm clipped to {value} from step {step} on",
        "lr": f"peak learning rate {value} from step {step} on",
        "objective": f"objective {value} from step {step} on",
    }[kind]

"""Counterfactuals: steps taken again with one thing changed, beside what the run logged."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch

from common.errors import InputError
from configs.load import load_recorded
from configs.schema import RunConfig
from data.batches import batch_number
from model.modeling import build
from model.registry import OBJECTIVES
from record.finished import Run as LoggedRun
from record.rewinds import last_rewind
from training.run import Run, interventions_of, interventions_state, load_interventions
from training.step import training_step

from .explanation import Counterfactual

METRICS = ("loss/nll", "grad_norm/total")
_KEYS = {"clip": "optimizer.clip_norm", "lr": "optimizer.lr", "objective": "objective.kind"}


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


def snapshot(run: Run, checkpoint: int) -> dict[str, Any]:
    """A copy of everything that steps change. ``checkpoint``: the step that the replay started from."""
    return {
        "checkpoint": checkpoint,
        "step": run.step,
        "model": copy.deepcopy(run.bare_model().state_dict()),
        "optimizer": copy.deepcopy(run.optimizer.optimizer.state_dict()),
        "interventions": copy.deepcopy(interventions_state(run)),
    }


def _restore(run: Run, before: dict[str, Any]) -> None:
    run.bare_model().load_state_dict(before["model"])
    run.optimizer.optimizer.load_state_dict(copy.deepcopy(before["optimizer"]))
    run.interventions = interventions_of(run.config)
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
    _restore(run, before)
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

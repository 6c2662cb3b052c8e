"""Writing a checkpoint."""

import copy
import functools
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model import SwapHeadForCausalLM
from model.sigma_reparam import split
from record.checkpoints import (
    MODEL,
    OPTIMIZER,
    OWN,
    Sharded,
    model_tensors,
    optimizer_tensors,
    prune,
    save_rest,
    write_checkpoint,
)

from .checks import teacher_manifest
from .run import Run, interventions_state
from .unknown import calibrate


def fit_to_keep(run: Run) -> bool:
    """Whether parameters and moments are finite; if not, raise the alarm. Waits for the device."""
    run.spoilt = not run.vitals.state_is_finite(run.optimizer.optimizer)
    if run.spoilt:
        run.watch.overflowed(run.step)
    return not run.spoilt


def save_checkpoint(run: Run, *, undecided: bool) -> None:
    """Write the checkpoint of this step and delete those no longer needed; under FSDP2 only begin to. All ranks call it.
    ``undecided``: whether there are alarms on which the run would decide later."""
    run.background.finish()  # the one before, if it is still being written
    calibrate(run)
    run.watchdog.moved(run.step, "checkpoint")
    interventions = {name: t.cpu() for name, t in interventions_state(run).items()}
    state = _state(run, undecided) if run.accelerator.is_main_process else {}
    save = _save_shards if run.accelerator.is_fsdp2 else _save_whole
    save(run, interventions, state)


def _state(run: Run, undecided: bool) -> dict[str, Any]:
    """What is kept in trainer_state.json."""
    config, scaler, nll = run.config, run.accelerator.scaler, run.validation_nll
    return {
        "tokens": run.step * run.tokens_per_step,
        "validation_nll": nll if nll is not None and math.isfinite(nll) else None,
        "detectors": run.watch.state(),
        "alarms": [asdict(alarm) for alarm in run.watch.alarms] if undecided else [],
        "config": config.model_dump(mode="json"),
        "data": run.store.manifest_hash(),
        "teacher": teacher_manifest(config),
        "gradient_scaler": None if scaler is None else scaler.state_dict(),
    }


def _save_whole(run: Run, interventions: dict[str, Tensor], state: dict[str, Any]) -> None:
    tensors = optimizer_tensors(run.model, run.optimizer.optimizer)
    weights, reparametrised = split(model_tensors(run.model, run.bare_model()))
    if run.accelerator.is_main_process:
        save_model, tidy = _saver(run, weights), _pruning(run)
        run.recorder.sync()  # the rows before a checkpoint are on disk before it is
        write_checkpoint(run.directory, run.step, save_model, tensors, interventions, reparametrised, state)
        tidy()
    run.accelerator.wait_for_everyone()


def _save_shards(run: Run, interventions: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Copy this rank's shards to main memory, and have all ranks write theirs beside training."""
    accelerator, main = run.accelerator, run.accelerator.is_main_process
    tensors = {f"{MODEL}{n}": t for n, t in model_tensors(run.model, run.bare_model(), OWN).items()}
    moments = optimizer_tensors(run.model, run.optimizer.optimizer, OWN)
    parts = run.staging.copy(tensors | {f"{OPTIMIZER}{n}": t for n, t in moments.items()}, main=main)
    checkpoint = Sharded(run.directory, run.step, run.launch)
    if not main:
        run.background.begin([lambda: checkpoint.write(accelerator.process_index, parts), lambda: None])
        return
    save_model, tidy = _saver(run, {}), _pruning(run)
    state = copy.deepcopy({"step": run.step, **state})

    def save(folder: Path) -> None:
        save_model(folder)
        save_rest(folder, interventions, {}, state)

    def publish() -> None:
        run.recorder.sync()  # the rows before a checkpoint are on disk before it is
        checkpoint.publish(accelerator.num_processes)
        tidy()

    write = functools.partial(checkpoint.write, accelerator.process_index, parts, save)
    run.background.begin([write, publish], abandon=lambda: shutil.rmtree(checkpoint.folder, ignore_errors=True))


def _saver(run: Run, weights: dict[str, Tensor]) -> Callable[[Path], None]:
    """What writes the model with these weights to a folder, as it is configured now."""
    tokenizer = run.store.load_tokenizer()
    with torch.device("meta"):  # a fresh object: sharding replaces the class of the model it wraps
        model = SwapHeadForCausalLM(copy.deepcopy(run.bare_model().config))

    def save_model(directory: Path) -> None:
        model.save_pretrained(directory, state_dict=weights)
        tokenizer.save_pretrained(directory)

    return save_model


def _pruning(run: Run) -> Callable[[], None]:
    """What deletes the checkpoints that are not needed, by what is known now."""
    keep, every = run.config.checkpoint.keep, run.config.checkpoint.every
    spikes = run.watch.first_steps(run.config.checkpoint.keep_before_spikes)
    return functools.partial(prune, run.directory, keep, spikes, every)

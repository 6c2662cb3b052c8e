"""Writing a checkpoint."""

import math
from dataclasses import asdict
from pathlib import Path

import torch

from model import SwapHeadForCausalLM
from model.sigma_reparam import split
from record.checkpoints import model_tensors, optimizer_tensors, prune, write_checkpoint

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
    """Write the checkpoint of this step and delete those no longer needed. All ranks call it. ``undecided``: whether there
    are alarms on which the run would decide later."""
    config, accelerator = run.config, run.accelerator
    calibrate(run)
    run.watchdog.moved(run.step, "checkpoint")
    tensors = optimizer_tensors(run.model, run.optimizer.optimizer)
    weights, reparametrised = split(model_tensors(run.model, run.bare_model()))
    interventions = {name: t.cpu() for name, t in interventions_state(run).items()}
    if accelerator.is_main_process:
        tokenizer, nll = run.store.load_tokenizer(), run.validation_nll
        with torch.device("meta"):  # a fresh object: sharding replaces the class of the model it wraps
            model = SwapHeadForCausalLM(run.bare_model().config)

        def save_model(directory: Path) -> None:
            model.save_pretrained(directory, state_dict=weights)
            tokenizer.save_pretrained(directory)

        state = {
            "tokens": run.step * run.tokens_per_step,
            "validation_nll": nll if nll is not None and math.isfinite(nll) else None,
            "detectors": run.watch.state(),
            "alarms": [asdict(alarm) for alarm in run.watch.alarms] if undecided else [],
            "config": config.model_dump(mode="json"),
            "data": run.store.manifest_hash(),
            "teacher": teacher_manifest(config),
            "gradient_scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
        }
        run.recorder.sync()  # the rows before a checkpoint are on disk before it is
        write_checkpoint(run.directory, run.step, save_model, tensors, interventions, reparametrised, state)
        spikes = run.watch.first_steps(config.checkpoint.keep_before_spikes)
        prune(run.directory, config.checkpoint.keep, spikes, config.checkpoint.every)
    accelerator.wait_for_everyone()

"""Writing a checkpoint."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .run import Run


def fit_to_keep(run: Run) -> bool:
    """Whether parameters and moments are finite, as a checkpoint's must be; raises the alarm if not. Waits for the device."""
    run.spoilt = not run.vitals.state_is_finite(run.optimizer.optimizer)
    if run.spoilt:
        run.watch.overflowed(run.step)
    return not run.spoilt


def save_checkpoint(run: Run, *, undecided: bool) -> None:
    """Write the checkpoint of this step and delete the ones that need not stay. All ranks call it.

    ``undecided``: whether the run has seen alarms that it would decide about later.
    """
    import torch

    from model import SwapHeadForCausalLM
    from record.checkpoints import model_tensors, optimizer_tensors, prune, write_checkpoint

    from .run import interventions_state

    config, accelerator = run.config, run.accelerator
    run.watchdog.moved(run.step, "checkpoint")
    tensors = optimizer_tensors(run.model, run.optimizer.optimizer)
    weights = model_tensors(run.model, run.bare_model())
    interventions = {name: t.cpu() for name, t in interventions_state(run).items()}
    if accelerator.is_main_process:
        tokenizer, nll = run.store.load_tokenizer(), run.validation_nll
        with torch.device("meta"):  # of the project's own class: sharding swaps the class of the model it wraps
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
            "gradient_scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
        }
        run.recorder.sync()  # the rows before a checkpoint are on the disk before it
        write_checkpoint(run.directory, run.step, save_model, tensors, interventions, state)
        spikes = run.watch.first_steps(config.checkpoint.keep_before_spikes)
        prune(run.directory, config.checkpoint.keep, spikes, config.checkpoint.every)
    accelerator.wait_for_everyone()

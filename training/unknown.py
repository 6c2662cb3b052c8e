"""Calibrating what a model knows: the distance to the nearest class that a share of the validation text exceeds."""

from __future__ import annotations

import math

import torch

from data.batches import IGNORED
from model.unknown import threshold_at
from ranks.collectives import all_reduce, only_looking

from .evaluate import validation_batches
from .run import Run

NOT_THERE = -1.0
"""Stands for a position that only fills a rank's share; distances are never negative."""


def calibrate(run: Run) -> None:
    """Set the model's threshold as configured, at its weights of now, if that is finite; all ranks call it. Otherwise it has
    none: one from an earlier checkpoint would no longer hold."""
    config, fpr = run.bare_model().config, run.config.checkpoint.unknown_fpr
    for name in ("unknown_distance", "unknown_fpr"):
        vars(config).pop(name, None)
    if fpr is not None and math.isfinite(threshold := threshold_at(_distances(run), fpr)):
        config.unknown_distance, config.unknown_fpr = threshold, fpr


def _distances(run: Run) -> torch.Tensor:
    """The distance of each position of the validation set to its nearest class, from all ranks."""
    accelerator, model, parts = run.accelerator, run.bare_model(), []
    with only_looking(model):
        for x_BT, y_BT in validation_batches(run):
            run.watchdog.moved(run.step, "calibration")
            inputs = {"input_ids": x_BT.to(accelerator.device), "logits_to_keep": 1, "use_cache": False}
            there_BT = (y_BT != IGNORED).to(accelerator.device)
            parts.append(torch.where(there_BT, model(**inputs, nearest=True).nearest, NOT_THERE).flatten())
    own = torch.cat(parts)
    all_WN = own.new_zeros(accelerator.num_processes, len(own))
    all_WN[accelerator.process_index] = own
    all_reduce(all_WN, "sum")
    return all_WN[all_WN >= 0]

"""Evaluation on the fixed validation set. Shapes: B sequences, T positions, N tokens, K bins of the confidence."""

from collections.abc import Iterator

import torch
from torch import Tensor

from data.batches import evaluation_batches
from model.chunked import TokenLosses
from ranks.collectives import all_reduce, only_looking

from .run import Run

CALIBRATION_BINS = 15
"""Bins of the expected calibration error, as in Guo et al. 2017 (arXiv 1706.04599)."""


def validation_batches(run: Run) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets (B, T) of this rank's share of the validation set."""
    config, ranks = run.config, run.accelerator.num_processes
    return evaluation_batches(
        run.store.validation.ids,
        config.data.sequence_length,
        config.train.eval_sequences,
        config.train.micro_batch_size or max(1, config.train.batch_size // ranks),
        rank=run.accelerator.process_index,
        world_size=ranks,
    )


def evaluate(run: Run) -> dict[str, float]:
    """NLL, objective, accuracy and calibration on the fixed validation set; uses no random stream."""
    accelerator, model = run.accelerator, run.bare_model()
    sums = torch.zeros(3, device=accelerator.device)
    bins_2K = torch.zeros(2, CALIBRATION_BINS, device=accelerator.device)
    with only_looking(model):
        for x_BT, y_BT in validation_batches(run):
            run.watchdog.moved(run.step, "evaluation")
            inputs = {"input_ids": x_BT.to(accelerator.device), "shift_labels": y_BT.to(accelerator.device)}
            losses = model(**inputs, skip_logits=True, use_cache=False).losses
            sums += torch.stack([losses.nll_sum, losses.objective_sum, losses.valid_N.sum()])
            bins_2K += calibration_sums(losses)
    all_reduce(sums, "sum")
    all_reduce(bins_2K, "sum")
    nll, objective, count = sums.tolist()
    right_K, confidence_K = bins_2K.double().cpu() / count
    return {
        "validation/nll": nll / count,
        "validation/objective": objective / count,
        "validation/accuracy": right_K.sum().item(),
        "validation/ece": (right_K - confidence_K).abs().sum().item(),
    }


def calibration_sums(losses: TokenLosses) -> Tensor:
    """For each of K equal bins of the confidence, the number of valid tokens that were predicted right, and the sum of their
    confidences (2, K)."""
    bin_N = (losses.confidence_N * CALIBRATION_BINS).long().clamp(0, CALIBRATION_BINS - 1)
    within_NK = bin_N[:, None] == torch.arange(CALIBRATION_BINS, device=bin_N.device)
    values_2N = torch.stack([losses.right_N, losses.confidence_N]) * losses.valid_N
    return (values_2N[:, :, None] * within_NK).sum(1)

"""Bring buffered steps to the host, evaluate, write the rows and inspect them."""

import time

import torch
from torch import Tensor

from data.batches import evaluation_batches
from model.chunked import TokenLosses
from ranks.collectives import all_reduce, only_looking
from record.checkpoints import start_step
from record.environment import peak_memory_bytes

from .run import Run

CALIBRATION_BINS = 15
"""Bins of the expected calibration error, as in Guo et al. 2017 (arXiv 1706.04599)."""


def flush(run: Run, evaluation_due: bool) -> None:
    """Bring the buffered steps over, evaluate if that is due, write and inspect them; they are then ``run.rows``."""
    run.watchdog.moved(run.step, "transfer")
    transferred, healthy = run.recorder.transfer()
    speed = len(transferred) * run.tokens_per_step / (time.perf_counter() - run.began)
    run.diverged = healthy < len(transferred)
    rows = transferred[: healthy + 1]  # steps after the bad one made no update and mean nothing
    for row in rows:
        row["throughput/tokens_per_second"] = speed
        row["memory/peak_bytes"] = peak_memory_bytes(run.accelerator.device)
    if evaluation_due and not run.diverged:
        rows[-1] |= evaluate(run)
    run.rows = rows
    run.validation_nll = rows[-1].get("validation/nll")
    run.recorder.write_rows(rows)
    report_stresses(run)
    since = None
    if run.diverged:  # the step before is to blame if it was its update that made something not finite
        since = rows[-1]["step"] - any(not name.startswith("gradient of ") for name in run.vitals.names())
    run.watch.look(rows, run.batch_number, diverged_since=since)
    run.trackers.log(rows)
    run.bar.set_postfix({"nll": f"{rows[-1]['loss/nll']:.3f}", "tok/s": f"{speed:,.0f}"}, refresh=False)
    run.bar.update(rows[-1]["step"] - run.bar.n)


def report_stresses(run: Run) -> None:
    """Write an event for each stress that has begun or ended to act in the steps just flushed."""
    begin = start_step(run.directory)
    for row in run.rows:
        step = row["step"]
        for number, stress in enumerate(run.stresses):
            acts, acted = (stress.acts(s, run.batch_number(s)) if s > begin else False for s in (step, step - 1))
            if acts != acted:
                what = stress.describe(step, run.batch_number(step)) if acts else ""
                event = {"step": step, "number": number, "kind": stress.kind, "description": what}
                run.recorder.event("stress_began" if acts else "stress_ended", step, **event)


def evaluate(run: Run) -> dict[str, float]:
    """NLL, objective, accuracy and calibration on the fixed validation set; uses no random stream."""
    config, accelerator = run.config, run.accelerator
    batches = evaluation_batches(
        run.store.validation.ids,
        config.data.sequence_length,
        config.train.eval_sequences,
        config.train.micro_batch_size or max(1, config.train.batch_size // accelerator.num_processes),
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    model = run.bare_model()
    sums = torch.zeros(3, device=accelerator.device)
    bins_2K = torch.zeros(2, CALIBRATION_BINS, device=accelerator.device)
    with only_looking(model):
        for x_BT, y_BT in batches:
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

"""One optimizer step: batch, forward and backward, clipping, update.

Shapes: B sequences of one micro-batch on this rank, T positions.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

from common.seeds import stream_seed

if TYPE_CHECKING:
    from .run import Run


def training_step(run: Run, step: int) -> None:
    """One optimizer step over all micro-batches. Reads nothing back from the device."""
    config, accelerator = run.config, run.accelerator
    run.watchdog.moved(step, "batch")
    host = prepare_step(run, step)
    x_BT, y_BT = step_batch(run, step)
    if accelerator.device.type == "cuda":
        x_BT, y_BT = x_BT.pin_memory(), y_BT.pin_memory()  # only from pinned memory does a copy not wait
    rows = config.train.micro_batch_size or len(x_BT)
    targets = valid_targets(y_BT, accelerator.device)
    for start in range(0, len(x_BT), rows):
        run.watchdog.moved(step, "forward and backward")
        last = start + rows >= len(x_BT)
        # Sharded gradients are summed over ranks at once: between micro-batches each rank would hold all of them.
        with contextlib.nullcontext() if last or accelerator.is_fsdp2 else accelerator.no_sync(run.model):
            out = run.model(
                input_ids=x_BT[start : start + rows].to(accelerator.device, non_blocking=True),
                shift_labels=y_BT[start : start + rows].to(accelerator.device, non_blocking=True),
                num_items_in_batch=targets,  # every token counts the same, whichever rank or part holds it
                skip_logits=True,
                statistics=config.telemetry.enabled,
                use_cache=False,
            )
            # Ranks average their gradients, hence the factor. Once ``alive`` is NaN, no update happens any more.
            accelerator.backward(out.loss * (accelerator.num_processes * run.alive))
            run.telemetry.add_losses(out.losses)
    run.watchdog.moved(step, "update")
    run.recorder.add(host, update(run))
    run.step = step


def valid_targets(y_BT: Any, device: Any) -> Any:
    """How many targets of the step count, over all ranks: a device scalar."""
    from data.batches import IGNORED
    from ranks.collectives import all_reduce

    count = (y_BT != IGNORED).sum().to(device, non_blocking=True)
    all_reduce(count, "sum")
    return count


def prepare_step(run: Run, step: int) -> dict[str, Any]:
    """Set learning rate and random state of ``step`` and probe attention if that is due; returns what the host knows."""
    import torch

    from stability.stress.rate import lr_factor

    from .schedule import learning_rate

    config = run.config
    lr = learning_rate(config.optimizer, config.train.steps, step) * lr_factor(config.stress, step)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    every = config.telemetry.attention_every
    if config.telemetry.enabled and every is not None and step % every == 0:
        probe_attention(run)
    torch.manual_seed(stream_seed(config.seed, "dropout", step, run.accelerator.process_index))
    return {"step": step, "tokens": step * run.tokens_per_step, "lr": lr, "data/batch": run.batch_number(step)}


def step_batch(run: Run, step: int) -> tuple[Any, Any]:
    """Inputs and targets (B, T) of this rank at ``step``, with the faults that are planted there."""
    from stability.stress.batch import corrupt

    number = run.batch_number(step)
    x_BT, y_BT = run.batches.at(number)
    corrupt(
        x_BT,
        y_BT,
        run.config.stress,
        number,
        seed=run.config.seed,
        vocab_size=run.store.vocab_size,
        first_row=run.accelerator.process_index * len(x_BT),
    )
    return x_BT, y_BT


def probe_attention(run: Run) -> None:
    """Measure the attention logits on fixed validation sequences; touches no random stream and no gradient."""
    from model import attention_probe
    from ranks.collectives import only_looking

    model = run.bare_model()
    with only_looking(model), attention_probe(model.model) as layers:
        model(input_ids=run.probe_BT, logits_to_keep=1, use_cache=False)
    run.telemetry.add_attention(layers)


def update(run: Run) -> dict[str, Any]:
    """Clip, then step unless something is not finite; returns what the step measured, on the device."""
    import torch

    from record.recorder import ALIVE

    telemetry, optimizer, clip_norm = run.telemetry, run.optimizer, run.config.optimizer.clip_norm
    losses = telemetry.loss_values()
    scaled = run.accelerator.scaler is not None
    if scaled:
        # fp16 overflows now and then by design; its GradScaler skips those steps itself, and a gradient tells no divergence.
        run.accelerator.unscale_gradients(optimizer)
    total = telemetry.before_update()
    healthy = losses["loss/objective"].isfinite() & losses["loss/nll"].isfinite() & (total.isfinite() | scaled)
    healthy = run.vitals.look(
        run.alive,
        telemetry.local_loss,
        None if scaled else telemetry.gradient_norm_P,
        telemetry.parameter_norm_P,
        optimizer.optimizer,
        sound=healthy,
    )
    if not scaled:
        # The fused kernel leaves parameters and moments alone where found_inf is 1: no update, and no wait for the device.
        optimizer.optimizer.found_inf = (~healthy).float()
    run.alive = torch.where(healthy, run.alive, math.nan)
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(telemetry.parameters, clip_norm, total)
    optimizer.step()
    telemetry.after_update()
    optimizer.zero_grad(set_to_none=True)
    return losses | telemetry.collect() | {ALIVE: run.alive}

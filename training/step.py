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
    run.recorder.add(host, update(run, step))
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

    from optim.optimizers import learning_rate

    config = run.config
    batch = run.batch_number(step)
    lr = learning_rate(config.optimizer, config.train.steps, step)
    lr *= math.prod(stress.rate(step) for stress in run.stresses if stress.acts(step, batch))
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    every = config.telemetry.attention_every
    if config.telemetry.enabled and every is not None and step % every == 0:
        probe_attention(run)
    torch.manual_seed(stream_seed(config.seed, "dropout", step, run.accelerator.process_index))
    return {"step": step, "tokens": step * run.tokens_per_step, "lr": lr, "data/batch": batch}


def step_batch(run: Run, step: int) -> tuple[Any, Any]:
    """Inputs and targets (B, T) of this rank at ``step``, with the faults that are planted there."""
    number = run.batch_number(step)
    x_BT, y_BT = run.batches.at(number)
    for stress in run.stresses:
        if stress.acts(step, number):
            stress.batch(number, x_BT, y_BT, first_row=run.accelerator.process_index * len(x_BT))
    return x_BT, y_BT


def probe_attention(run: Run) -> None:
    """Measure the attention logits on fixed validation sequences; touches no random stream and no gradient."""
    from model import attention_probe
    from ranks.collectives import only_looking

    model = run.bare_model()
    with only_looking(model), attention_probe(model.model) as layers:
        model(input_ids=run.probe_BT, logits_to_keep=1, use_cache=False)
    run.telemetry.add_attention(layers)


def refuse_unreached(run: Run) -> None:
    """Raise InputError if a parameter of the head has no gradient: it would never be trained, and never be resumed."""
    from common.errors import InputError

    idle = [name for name, p in run.bare_model().lm_head.named_parameters() if p.requires_grad and p.grad is None]
    if idle:
        raise InputError(
            f"head.kind: {run.config.head.kind}: no gradient reaches {', '.join(idle)}; "
            "use it in features() or classes(), not in logits()"
        )
    run.reached = True


def update(run: Run, step: int) -> dict[str, Any]:
    """Change the parameters, unless something is not finite or an intervention says no; returns what was measured.

    All of it on the device, and nothing waits for it.
    """
    import torch

    from record.recorder import ALIVE
    from stability.intervene.base import Seen, act, scale_gradients

    telemetry, optimizer = run.telemetry, run.optimizer
    if not run.reached:
        refuse_unreached(run)
    losses = telemetry.loss_values()
    scaled = run.accelerator.scaler is not None
    if scaled:
        # fp16 overflows now and then by design; its GradScaler skips those steps itself, and a gradient tells no divergence.
        run.accelerator.unscale_gradients(optimizer)
    for stress in run.stresses:
        if stress.acts(step, run.batch_number(step)):
            stress.gradients(step, [p.grad for p in telemetry.parameters if p.grad is not None])
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
    run.alive = torch.where(healthy, run.alive, math.nan)
    norms = telemetry.gradient_norm_P, telemetry.parameter_norm_P
    seen = Seen(step, losses["loss/nll"], total, *norms, telemetry.parameters)
    scale, skip, said = act(run.interventions, seen)
    if scale is not None:
        scale_gradients(telemetry.parameters, scale)
    if not scaled:
        # The fused kernel leaves parameters and moments alone where found_inf is 1: no update, and no wait for the device.
        optimizer.optimizer.found_inf = (~healthy if skip is None else ~healthy | skip).float()
    optimizer.step()
    for intervention in run.interventions.values():
        intervention.on_update(seen)
    telemetry.after_update()
    optimizer.zero_grad(set_to_none=True)
    return losses | telemetry.collect() | said | {ALIVE: run.alive}

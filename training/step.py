"""One optimizer step: batch, forward and backward, clipping, update. Shapes: B sequences of one micro-batch on this rank, T
positions."""

import contextlib
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError
from common.seeds import stream_seed
from data.batches import IGNORED
from model import attention_probe
from model.sigma_reparam import power_step, scales
from optim.optimizers import learning_rate
from ranks.collectives import all_reduce, only_looking
from record.recorder import ALIVE
from stability.intervene.base import Seen
from stability.intervene.stages import on_gradient, on_update

from .edge import Edge, edge_of
from .negatives import Rows, told
from .run import Run


def training_step(run: Run, step: int) -> None:
    """One optimizer step over all micro-batches. Reads nothing back from the device."""
    config, accelerator = run.config, run.accelerator
    run.watchdog.moved(step, "batch")
    host = prepare_step(run, step)
    x_BT, y_BT = step_batch(run, step)
    if accelerator.device.type == "cuda":
        x_BT, y_BT = x_BT.pin_memory(), y_BT.pin_memory()  # copies from pageable memory would block
    rows = config.train.micro_batch_size or len(x_BT)
    targets = valid_targets(y_BT, accelerator.device)
    lose_targets(run, step, y_BT)
    negative_K = negative_rows(run, step)
    edge = edge_of(run, step, x_BT, y_BT, targets, negative_K)
    for start in range(0, len(x_BT), rows):
        run.watchdog.moved(step, "forward and backward")
        last = start + rows >= len(x_BT)
        # Sharded gradients are reduced at once; otherwise each rank would hold all of them between micro-batches.
        with contextlib.nullcontext() if last or accelerator.is_fsdp2 else accelerator.no_sync(run.model):
            out = run.model(
                input_ids=x_BT[start : start + rows].to(accelerator.device, non_blocking=True),
                shift_labels=y_BT[start : start + rows].to(accelerator.device, non_blocking=True),
                num_items_in_batch=targets,  # every token has the same weight, whichever rank or micro-batch holds it
                skip_logits=True,
                statistics=config.telemetry.measures("logits"),
                use_cache=False,
                **told(negative_K, start, rows, accelerator.device),
            )
            # Gradients are averaged over ranks, hence the factor. Once ``alive`` is NaN there are no more updates.
            accelerator.backward(out.loss * (accelerator.num_processes * run.alive))
            run.telemetry.end_micro_batch(out.losses)
            plain = accelerator.scaler is None and negative_K is None
            if start == 0 and not last and config.telemetry.enabled and plain:
                factor = 1.0 if accelerator.is_fsdp2 else accelerator.num_processes
                run.telemetry.after_first_micro_batch(targets, factor=factor, shared=accelerator.is_fsdp2)
    run.watchdog.moved(step, "update")
    run.recorder.add(host, update(run, step, edge))
    run.step = step


def valid_targets(y_BT: Tensor, device: torch.device) -> Tensor:
    """Number of targets of the step that count, over all ranks, as a device scalar."""
    count = (y_BT != IGNORED).sum().to(device, non_blocking=True)
    all_reduce(count, "sum")
    return count


def prepare_step(run: Run, step: int) -> dict[str, Any]:
    """Set learning rate and random state of ``step``, probe attention if due; returns the values known on the host. Stresses
    disturb the optimizer's settings and the state that the step starts from."""
    config = run.config
    batch = run.batch_number(step)
    acting = [stress for stress in run.stresses if stress.acts(step, batch)]
    for intervention in run.interventions.values():
        intervention.begin(step)
    lr = learning_rate(config.optimizer, config.train.steps, step)
    lr *= math.prod(stress.rate(step) for stress in acting)
    lr *= math.prod(intervention.rate(step) for intervention in run.interventions.values())
    for group, usual in zip(run.optimizer.param_groups, run.settings, strict=True):
        group.update(usual, lr=lr)
        for stress in acting:
            group.update(stress.settings(step, group))
    disturb_state(run, step)
    every = config.telemetry.attention_every
    if config.telemetry.enabled and every is not None and step % every == 0:
        probe_attention(run)
    seed_dropout(run.accelerator.device, stream_seed(config.seed, "dropout", step, run.accelerator.process_index))
    row = {"step": step, "tokens": step * run.tokens_per_step, "lr": lr, "data/batch": batch}
    return row | ({"stress/acting": len(acting)} if run.stresses else {})


def seed_dropout(device: torch.device, seed: int) -> None:
    """Seed the generator that dropout draws from."""
    if device.type == "cpu":
        # torch.manual_seed looks for every other kind of device, which takes a millisecond.
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


@torch.no_grad()
def disturb_state(run: Run, step: int) -> None:
    """Let stresses disturb the parameters and the optimizer's state that ``step`` starts from."""
    for stress in run.stresses:
        if stress.acts(step, run.batch_number(step)):
            stress.state(step, dict(run.bare_model().named_parameters()), run.optimizer.optimizer)


def step_batch(run: Run, step: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, T) of this rank at ``step``, with the stresses planned for it; negatives have no targets."""
    number = run.batch_number(step)
    x_BT, y_BT = run.batches.at(number)
    for stress in run.stresses:
        if stress.acts(step, number):
            stress.batch(number, x_BT, y_BT, first_row=run.accelerator.process_index * len(x_BT))
    if run.negatives is not None:
        run.negatives.replace(number, x_BT, y_BT, first_row=run.accelerator.process_index * len(x_BT))
    return reshaped(run, step, x_BT, y_BT)


def reshaped(run: Run, step: int, x_BT: Tensor, y_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The batch of ``step`` in the shape that the stresses give it."""
    number = run.batch_number(step)
    for stress in run.stresses:
        if stress.acts(step, number):
            x_BT, y_BT = stress.reshape(number, x_BT, y_BT)
    return x_BT, y_BT


def lose_targets(run: Run, step: int, y_BT: Tensor) -> None:
    """Let stresses ignore targets that have been counted."""
    number, rows = run.batch_number(step), len(y_BT)
    for stress in run.stresses:
        if stress.acts(step, number):
            batch_rows = rows * run.accelerator.num_processes
            stress.lose(number, y_BT, first_row=run.accelerator.process_index * rows, batch_rows=batch_rows)


def negative_rows(run: Run, step: int) -> Rows | None:
    """The rows (K,) of this rank's batch of ``step`` that are negatives, in the shape that stresses give it and without those
    they lose; None in a run without negatives."""
    if run.negatives is None:
        return None
    rows = run.config.train.batch_size // run.accelerator.num_processes
    mark_BT = torch.full((rows, run.config.data.sequence_length), IGNORED)
    mark_BT[run.negatives.rows(run.accelerator.process_index * rows, rows)] = 0
    mark_BT, _ = reshaped(run, step, mark_BT, mark_BT)
    lose_targets(run, step, mark_BT)
    return np.flatnonzero(mark_BT[:, 0].numpy() != IGNORED)


def probe_attention(run: Run) -> None:
    """Measure the attention logits and the residual stream's kurtosis on fixed validation sequences, without random numbers
    or gradients."""
    model = run.bare_model()
    with only_looking(model), run.telemetry.probe(), attention_probe(model.model) as layers:
        model(input_ids=run.probe_BT, logits_to_keep=1, use_cache=False)
    run.telemetry.attention = list(layers)


def refuse_unreached(run: Run) -> None:
    """Raise InputError if a parameter of the head got no gradient: it would be neither trained nor resumed."""
    idle = [name for name, p in run.bare_model().lm_head.named_parameters() if p.requires_grad and p.grad is None]
    if idle:
        raise InputError(
            f"head.kind: {run.config.head.kind}: no gradient reaches {', '.join(idle)}; "
            "use it in features() or classes(), not in logits()"
        )
    run.reached = True


def update(run: Run, step: int, edge: Edge | None) -> dict[str, Any]:
    """Update the parameters unless something is not finite or an intervention skips the step; returns what was measured.
    Everything stays on the device, and nothing waits for it. ``edge``: what else is measured around this step's update."""
    telemetry, optimizer = run.telemetry, run.optimizer
    if not run.reached:
        refuse_unreached(run)
    losses = telemetry.loss_values()
    scaled = run.accelerator.scaler is not None
    if scaled:
        # fp16 overflows by design; the GradScaler skips those steps itself, and an infinite gradient is no divergence.
        run.accelerator.unscale_gradients(optimizer)
    if edge:
        edge.before_gradients_change()
    for stress in run.stresses:
        if stress.acts(step, run.batch_number(step)):
            stress.gradients(step, [p.grad for p in telemetry.parameters if p.grad is not None])
    total = telemetry.before_update()
    norms = telemetry.gradient_norm_P, telemetry.parameter_norm_P
    seen = Seen(step, losses["loss/nll"], total, *norms, telemetry.parameters)
    seen, decisions = on_gradient(run.interventions, seen)
    sound = losses["loss/objective"].isfinite() & losses["loss/nll"].isfinite() & (total.isfinite() | scaled)
    healthy = run.vitals.look(
        run.alive,
        telemetry.local_loss,
        None if scaled else norms[0],
        norms[1],
        optimizer.optimizer,
        sound=sound,
        skipped=decisions.skip,
    )
    run.alive = torch.where(healthy, run.alive, math.nan)
    taken = healthy & run.alive.isfinite()
    if decisions.skip is not None:
        taken = taken & ~decisions.skip
    if not scaled:
        # With found_inf = 1 the fused kernel leaves parameters and moments alone, without waiting for the device.
        optimizer.optimizer.found_inf = (~taken).float()
    if edge:
        edge.before_update(decisions.scale)
    spectral = scales(run.model) if run.config.body.sigma_reparam and run.config.telemetry.measures("norms") else {}
    optimizer.step()
    on_update(run.interventions, seen, telemetry.before, taken, decisions, edge)
    telemetry.after_update()
    near = edge.after_update() if edge else {}
    if run.config.body.sigma_reparam:
        power_step(run.model, taken & total.isfinite())  # of an infinite gradient the GradScaler makes no step
    optimizer.zero_grad(set_to_none=True)
    measured = telemetry.collect()
    run.bare_model().objective.after_step(measured)
    return losses | measured | decisions.logged | near | spectral | {ALIVE: run.alive}

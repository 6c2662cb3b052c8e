"""Pretrain a language model and watch it: one run, from configuration to run directory.

    [accelerate launch] train_lm.py --config configs/pydoc_micro.yaml [key.sub=value ...] [--print-config]

Exit status: 0 finished, 2 bad input, 3 diverged (non-finite loss or gradient), 75 preempted (checkpoint written; the same
command goes on). Shapes: B sequences of one micro-batch on this rank, T positions.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import EXIT_DIVERGED, EXIT_FINISHED, EXIT_PREEMPTED, exit_status
from configs.load import dump_config, load_config
from configs.schema import Constant, Cosine, OptimizerConfig, RunConfig
from configs.seeds import stream_seed
from stability.signals import stop_signals

# Threads that wait for each other sleep instead of spinning: with one busy neighbour on the cores, spinning made a step on
# two cores several times slower (RESULTS.md). Read once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> int:
    """Parse the command line, then run; returns the exit status."""
    parser = argparse.ArgumentParser(description="Pretrain a language model and watch it.")
    parser.add_argument("--config", required=True, help="recipe: a YAML file, see configs/")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="changes to the recipe")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(dump_config(config), end="")
        return EXIT_FINISHED
    return train(config)


def train(config: RunConfig) -> int:
    """Run to the end, to divergence or to preemption."""
    run = set_up(config)
    if run is None:
        return EXIT_FINISHED
    try:
        return loop(run)
    except Exception as error:
        run.recorder.status("failed", run.bar.n, f"{type(error).__name__}: {error}")
        raise


def loop(run: Run) -> int:
    """All steps that are left; returns the exit status."""
    config, steps = run.config, run.config.train.steps
    from stability.distributed import any_rank

    run.began = time.perf_counter()
    with stop_signals() as stop, run.bar:
        for step in range(run.start_step + 1, steps + 1):
            training_step(run, step)
            checkpoint_due = step % config.checkpoint.every == 0 or step == steps
            evaluation_due = step % config.train.eval_every == 0 or checkpoint_due
            # A single process may stop at any step; several stop together, at a transfer.
            stop_due = stop.is_set and run.accelerator.num_processes == 1
            if not (step % config.telemetry.flush_every == 0 or evaluation_due or stop_due):
                continue
            if not flush(run, evaluation_due):
                return EXIT_DIVERGED
            stopping = any_rank(stop.is_set, run.accelerator.device) and step < steps
            if checkpoint_due or stopping:
                save_checkpoint(run, step)
            run.began = time.perf_counter()
            if stopping:
                run.recorder.event("preempted", step, step=step)
                run.recorder.status("preempted", step, "stopped by a signal; the same command goes on")
                return EXIT_PREEMPTED
    run.watch.finish(steps)
    run.recorder.status("finished", steps)
    run.accelerator.end_training()
    run.accelerator.print(f"finished: validation NLL {run.validation_nll:.4f} nats/token; {run.recorder.directory}")
    return EXIT_FINISHED


# ---------------------------------------------------------------------------------------------------------------- set-up


@dataclass
class Run:
    """Everything the loop holds on to."""

    config: RunConfig
    accelerator: Any
    store: Any
    batches: Any
    model: Any
    """As prepared for the launch: possibly wrapped."""
    optimizer: Any
    telemetry: Any
    recorder: Any
    watch: Any
    bar: Any
    alive: Any
    """A device scalar: 1, and NaN from the first loss or gradient on that is not finite."""
    start_step: int = 0
    validation_nll: float | None = None
    """Of the last row, if that was an evaluation's."""
    began: float = 0.0
    """Clock time at which the steps since the last transfer began; evaluation and checkpoints come before it."""

    @property
    def tokens_per_step(self) -> int:
        return self.config.train.batch_size * self.config.data.sequence_length


def set_up(config: RunConfig) -> Run | None:
    """Build everything, or restore it from the last checkpoint; None when the run is finished already."""
    import torch
    from tqdm import tqdm
    from transformers.utils import logging as transformers_logging

    from data.batches import Batches
    from data.store import open_store
    from model import load_model
    from stability.launch import start_accelerator
    from stability.recorder import Recorder
    from stability.resume import find_resume_point
    from stability.watch import Watch

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    accelerator = start_accelerator(config)
    rank, world_size, main_process = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    directory = Path(config.output_dir) / config.name
    point = find_resume_point(config, directory)
    if point.finished:
        accelerator.print(f"{directory}: already finished")
        return None

    store = open_store(config.data, progress=main_process)
    order_seed = stream_seed(config.seed, "data")
    batches = Batches(
        store.train.ids,
        config.data.sequence_length,
        config.train.batch_size,
        order_seed,
        rank=rank,
        world_size=world_size,
    )
    model = load_model(point.checkpoint) if point.checkpoint else build_model(config, store.vocab_size, store.eos_id)
    model = prepare_model(config, model)
    model, optimizer = accelerator.prepare(model, build_optimizer(model, config.optimizer))
    recorder = Recorder(directory, writes=main_process)
    bar = tqdm(total=config.train.steps, desc=config.name, unit="step", disable=not main_process, dynamic_ncols=True)
    say = tqdm.write if main_process else lambda _: None
    run = Run(
        config=config,
        accelerator=accelerator,
        store=store,
        batches=batches,
        model=model,
        optimizer=optimizer,
        telemetry=build_telemetry(accelerator.unwrap_model(model), config),
        recorder=recorder,
        watch=Watch(recorder, say, gradient_must_be_finite=accelerator.scaler is None),
        bar=bar,
        alive=torch.ones((), device=accelerator.device),
    )
    open_run_directory(run, point.checkpoint)
    return run


def build_model(config: RunConfig, vocab_size: int, special_id: int) -> Any:
    """A new model, its body new too or that of an existing checkpoint."""
    from transformers import AutoModelForCausalLM

    from configs.components import model_config
    from model import new_model

    model: Any = new_model(model_config(config, vocab_size, special_id), stream_seed(config.seed, "init"))
    if config.body.checkpoint is not None:
        existing = AutoModelForCausalLM.from_pretrained(
            config.body.checkpoint, dtype="float32", trust_remote_code=False
        )
        model.model.load_state_dict(existing.base_model.state_dict())
    return model


def prepare_model(config: RunConfig, model: Any) -> Any:
    """The model as the configuration wants it trained."""
    model.train()
    if config.train.gradient_checkpointing:
        # transformers 5.23 renames it and warns about the old name; 5.17 has only the old one.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()
    if config.train.compile:
        model.model.compile()
    return model


def build_optimizer(model: Any, config: OptimizerConfig) -> Any:
    """Fused AdamW with two explicit groups: matrices decay, vectors do not."""
    import torch

    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def build_telemetry(model: Any, config: RunConfig) -> Any:
    """The instruments, on the model inside whatever wraps it."""
    from model import blocks, final_norm
    from stability.telemetry import Telemetry, parameter_groups

    tied = config.head.options.get("tied", True)
    assert not tied or model.lm_head.weight is model.get_input_embeddings().weight, (
        "the launch broke the tied embedding"
    )
    names = {id(module): name for name, module in model.named_modules()}
    parameters = dict(model.named_parameters())
    stack = blocks(model.model)
    groups = parameter_groups(
        list(parameters),
        embedding_prefix=names[id(model.get_input_embeddings())],
        blocks_prefix=names[id(stack)],
        head_prefix=names[id(model.lm_head)],
    )
    return Telemetry(stack, final_norm(model.model), model.lm_head, parameters, groups, config.telemetry.enabled)


def open_run_directory(run: Run, checkpoint: Path | None) -> None:
    """Restore the state of a run that goes on, and write what describes the run."""
    from stability.checkpoints import load_optimizer, read_state
    from stability.environment import environment
    from stability.resume import flat

    config, recorder, accelerator = run.config, run.recorder, run.accelerator
    if checkpoint is not None:
        state = read_state(checkpoint)
        load_optimizer(checkpoint, run.model, run.optimizer.optimizer)
        run.start_step = run.bar.n = run.bar.initial = run.bar.last_print_n = state["step"]
        run.validation_nll = state["validation_nll"]
        run.watch.restore(state["spike_detectors"])
    facts = environment(accelerator.num_processes, accelerator.device, config.train.precision)
    facts["parameters"] = sum(p.numel() for p in run.telemetry.parameters)
    manifest = json.dumps(run.store.manifest, sort_keys=True)
    facts["data"] = {"store": run.store.path.name, "manifest_sha256": hashlib.sha256(manifest.encode()).hexdigest()}
    recorder.write_text("config.yaml", dump_config(config))
    recorder.write_text("environment.json", json.dumps(facts, indent=1) + "\n")
    recorder.rewind(run.start_step)
    recorder.status("running", run.start_step)
    if checkpoint is not None:
        recorder.event("resume", run.start_step, step=run.start_step)
    if config.trackers:
        settings = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in flat(config.model_dump()).items()}
        accelerator.init_trackers(config.name, config=settings)
    accelerator.wait_for_everyone()


# -------------------------------------------------------------------------------------------------------------- the loop


def learning_rate(config: OptimizerConfig, steps: int, step: int) -> float:
    """Rate of ``step`` (from 1): linear warm-up, then the schedule; a function of the step alone."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    schedule = config.schedule
    if isinstance(schedule, Constant):
        return config.lr
    if isinstance(schedule, Cosine):
        progress = (step - config.warmup_steps) / (steps - config.warmup_steps)
        factor = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        factor = min(1.0, (steps - step) / (schedule.decay_fraction * steps))
    return config.lr * (schedule.min_ratio + (1 - schedule.min_ratio) * factor)


def training_step(run: Run, step: int) -> None:
    """One optimizer step over all micro-batches. Reads nothing back from the device."""
    import torch

    from stability.distributed import all_reduce

    config, accelerator = run.config, run.accelerator
    lr = learning_rate(config.optimizer, config.train.steps, step)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    torch.manual_seed(stream_seed(config.seed, "dropout", step, accelerator.process_index))

    x_BT, y_BT = run.batches.at(step)
    if accelerator.device.type == "cuda":
        x_BT, y_BT = x_BT.pin_memory(), y_BT.pin_memory()  # only from pinned memory does a copy not wait
    rows = config.train.micro_batch_size or len(x_BT)
    # Every token of the step counts the same, whichever micro-batch or rank holds it.
    valid = torch.full((), int((y_BT != -100).sum()), device=accelerator.device)
    all_reduce(valid, "sum")
    for start in range(0, len(x_BT), rows):
        last = start + rows >= len(x_BT)
        with contextlib.nullcontext() if last else accelerator.no_sync(run.model):
            out = run.model(
                input_ids=x_BT[start : start + rows].to(accelerator.device, non_blocking=True),
                shift_labels=y_BT[start : start + rows].to(accelerator.device, non_blocking=True),
                num_items_in_batch=valid,
                statistics=config.telemetry.enabled,
                use_cache=False,
            )
            # Ranks average their gradients, hence the factor. Once ``alive`` is NaN, no update happens any more.
            accelerator.backward(out.loss * (accelerator.num_processes * run.alive))
            run.telemetry.add_losses(out.losses)
    values = update(run)
    run.recorder.add({"step": step, "tokens": step * run.tokens_per_step, "lr": lr}, values)


def update(run: Run) -> dict[str, Any]:
    """Clip, then step unless the loss or the gradient is not finite; returns what the step measured, on the device."""
    import torch

    telemetry, optimizer, clip_norm = run.telemetry, run.optimizer, run.config.optimizer.clip_norm
    losses = telemetry.loss_values()
    healthy = losses["loss/objective"].isfinite() & losses["loss/nll"].isfinite()
    if run.accelerator.scaler is not None:
        # fp16 overflows now and then by design; its GradScaler skips those steps itself, and only the loss tells divergence.
        run.accelerator.unscale_gradients(optimizer)
    total = telemetry.before_update()
    if run.accelerator.scaler is None:
        healthy = healthy & total.isfinite()
        # The fused kernel leaves parameters and moments alone where found_inf is 1: no update, and no wait for the device.
        optimizer.optimizer.found_inf = (~healthy).float()
    run.alive = torch.where(healthy, run.alive, math.nan)
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(telemetry.parameters, clip_norm, total)
    optimizer.step()
    telemetry.after_update()
    optimizer.zero_grad(set_to_none=True)
    return losses | telemetry.collect()


def flush(run: Run, evaluation_due: bool) -> bool:
    """Bring the buffered steps over, look at them, evaluate, write them. False when the run has diverged."""
    from stability.environment import peak_memory_bytes

    transferred = run.recorder.transfer()
    speed = len(transferred) * run.tokens_per_step / (time.perf_counter() - run.began)
    for row in transferred:
        row["throughput/tokens_per_second"] = speed
        row["memory/peak_bytes"] = peak_memory_bytes(run.accelerator.device)
    rows = run.watch.healthy(transferred)
    diverged = len(rows) < len(transferred)
    if diverged:
        rows = transferred[: len(rows) + 1]  # what came after the bad step saw no update and means nothing
    elif evaluation_due:
        rows[-1] |= evaluate(run)
    run.validation_nll = rows[-1].get("validation/nll")
    run.watch.find_spikes(rows)
    run.recorder.write_rows(rows)
    for row in rows:
        run.accelerator.log(row, step=row["step"])
    run.bar.set_postfix({"nll": f"{rows[-1]['loss/nll']:.3f}", "tok/s": f"{speed:,.0f}"}, refresh=False)
    run.bar.update(rows[-1]["step"] - run.bar.n)
    if diverged:
        run.watch.finish(rows[-1]["step"])
        run.watch.report_divergence(rows[-1])
        run.accelerator.end_training()
    return not diverged


def evaluate(run: Run) -> dict[str, float]:
    """NLL and objective on the fixed validation set; touches no random stream."""
    import torch

    from data.batches import evaluation_batches
    from stability.distributed import all_reduce

    config, accelerator = run.config, run.accelerator
    rows = config.train.micro_batch_size or max(1, config.train.batch_size // accelerator.num_processes)
    batches = evaluation_batches(
        run.store.validation.ids,
        config.data.sequence_length,
        config.train.eval_sequences,
        rows,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    model = accelerator.unwrap_model(run.model)
    sums = torch.zeros(3, device=accelerator.device)
    model.eval()
    with torch.no_grad():
        for x_BT, y_BT in batches:
            out = model(
                input_ids=x_BT.to(accelerator.device), shift_labels=y_BT.to(accelerator.device), use_cache=False
            )
            sums += torch.stack([out.losses.nll_sum, out.losses.objective_sum, out.losses.valid_N.sum()])
    model.train()
    all_reduce(sums, "sum")
    nll, objective, count = sums.tolist()
    return {"validation/nll": nll / count, "validation/objective": objective / count}


def save_checkpoint(run: Run, step: int) -> None:
    """Write the checkpoint of ``step`` and delete the ones that need not stay. All ranks call it."""
    import torch

    from model import SwapHeadForCausalLM
    from stability.checkpoints import optimizer_tensors, prune, write_checkpoint

    config, accelerator = run.config, run.accelerator
    tensors = optimizer_tensors(run.model, run.optimizer.optimizer)
    weights = accelerator.get_state_dict(run.model)
    if accelerator.is_main_process:
        tokenizer, nll = run.store.load_tokenizer(), run.validation_nll
        with torch.device("meta"):  # of the project's own class: sharding swaps the class of the model it wraps
            model = SwapHeadForCausalLM(accelerator.unwrap_model(run.model).config)

        def save_model(directory: Path) -> None:
            model.save_pretrained(directory, state_dict=weights)
            tokenizer.save_pretrained(directory)

        state = {
            "tokens": step * run.tokens_per_step,
            "validation_nll": nll if nll is not None and math.isfinite(nll) else None,
            "spike_detectors": run.watch.state(),
        }
        write_checkpoint(run.recorder.directory, step, save_model, tensors, state)
        prune(run.recorder.directory, config.checkpoint.keep)
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

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
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import EXIT_DIVERGED, EXIT_PREEMPTED, InputError, exit_status
from configs.load import dump_config, load_config
from configs.schema import Constant, Cosine, OptimizerConfig, RunConfig

SPIKE_SIGNALS = ("loss/nll", "grad_norm/total")
# What may change between a run and its continuation without changing its curves.
FREE_KEYS = ("output_dir", "resume", "checkpoint", "trackers", "telemetry.flush_every", "train.micro_batch_size", "data.cache_dir")  # fmt: skip


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
        return 0
    return train(config)


def train(config: RunConfig) -> int:
    """Run to the end, to divergence or to preemption."""
    run = set_up(config)
    if run is None:
        return 0
    steps = config.train.steps
    with stop_signals() as stop, run.progress() as bar:
        for step in range(run.start_step + 1, steps + 1):
            training_step(run, step)
            evaluation_due = step % config.train.eval_every == 0 or step == steps
            checkpoint_due = step % config.checkpoint.every == 0 or step == steps
            # One process may stop at any step; several stop together, at a transfer.
            stop_now = stop.is_set and run.accelerator.num_processes == 1
            if not (step % config.telemetry.flush_every == 0 or evaluation_due or checkpoint_due or stop_now):
                continue
            diverged = flush(run, step, evaluate=evaluation_due or checkpoint_due or stop_now, bar=bar)
            if diverged:
                return EXIT_DIVERGED
            stopping = run.any_rank(stop.is_set) and step < steps
            if checkpoint_due or stopping:
                save_checkpoint(run, step)
            if stopping:
                run.recorder.event("preempted", step, step=step)
                run.recorder.status("preempted", step, "stopped by a signal; the same command goes on")
                return EXIT_PREEMPTED
    finish(run)
    return 0


# ---------------------------------------------------------------------------------------------------------------- set-up


@dataclass
class Run:
    """Everything the loop holds on to."""

    config: RunConfig
    accelerator: Any
    model: Any  # as prepared: possibly wrapped
    optimizer: Any
    store: Any
    batches: Any
    telemetry: Any
    recorder: Any
    tokenizer: Any
    directory: Path
    start_step: int = 0
    validation_nll: float = math.nan
    detectors: list[Any] = field(default_factory=list)
    alive: Any = None  # 1.0, and NaN from the first non-finite loss or gradient on
    clock: float = 0.0  # seconds of training since the last transfer, without evaluation and checkpoints
    clock_steps: int = 0

    @property
    def tokens_per_step(self) -> int:
        return self.config.train.batch_size * self.config.data.sequence_length

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; all ranks call it."""
        import torch

        from stability.telemetry import all_reduce

        value = torch.tensor(float(flag), device=self.accelerator.device)
        all_reduce(value, "max")
        return bool(value.item())

    def progress(self) -> Any:
        """Progress bar of the main process: step, NLL, tokens/s and time left."""
        from tqdm import tqdm

        return tqdm(
            total=self.config.train.steps,
            initial=self.start_step,
            desc=self.config.name,
            unit="step",
            disable=not self.accelerator.is_main_process,
            dynamic_ncols=True,
        )


def set_up(config: RunConfig) -> Run | None:
    """Build or restore everything; None when the run is finished already."""
    # Imported here, so that --print-config and a mistake in the configuration answer at once.
    from transformers.utils import logging as transformers_logging

    from configs.components import model_config
    from data.batches import Batches
    from data.store import open_store
    from stability.checkpoints import list_checkpoints
    from stability.recorder import Recorder
    from stability.spikes import SpikeDetector

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    accelerator = start_accelerator(config)
    directory = Path(config.output_dir) / config.name
    checkpoint = find_resume_point(config, directory, list_checkpoints(directory))
    if checkpoint is not None and checkpoint.name == "finished":
        accelerator.print(f"{directory}: already finished")
        return None

    with accelerator.main_process_first():
        store = open_store(config.data, progress=accelerator.is_main_process)
    batches = Batches(
        store.train.ids,
        config.data.sequence_length,
        config.train.batch_size,
        stream_seed(config.seed, "data"),
        accelerator.process_index,
        accelerator.num_processes,
    )
    model = build_model(config, model_config(config, store.vocab_size, store.eos_id), checkpoint)
    optimizer = build_optimizer(model, config.optimizer)
    telemetry, model, optimizer = prepare(accelerator, config, model, optimizer)
    run = Run(
        config, accelerator, model, optimizer, store, batches, telemetry,
        Recorder(directory, accelerator.is_main_process), store.load_tokenizer(), directory,
        detectors=[SpikeDetector(signal) for signal in SPIKE_SIGNALS],
    )  # fmt: skip
    run.alive = telemetry.group_norms.members_GP.new_ones(())
    open_run_directory(run, checkpoint)
    return run


def start_accelerator(config: RunConfig) -> Any:
    """Accelerate's launcher state, checked: the processes that were started are the ones that work together."""
    import accelerate
    import torch

    known = {str(t) for t in accelerate.tracking.LOGGER_TYPE_TO_CLASS}
    missing = [t for t in config.trackers if t not in known or not _tracker_available(t)]
    if missing:
        raise InputError(*(f"trackers: {t} is not installed, or unknown to Accelerate ({', '.join(sorted(known))})" for t in missing))  # fmt: skip
    accelerator = accelerate.Accelerator(
        mixed_precision={"fp32": "no"}.get(config.train.precision, config.train.precision),
        log_with=list(config.trackers) or None,
        project_dir=config.output_dir,
    )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise InputError(
            f"launch: {started} processes were started but Accelerate works with {accelerator.num_processes}; "
            "on CPU set ACCELERATE_USE_CPU=1 (configs/launch/ has files that work)"
        )
    if config.train.batch_size % started:
        raise InputError(f"train.batch_size: {config.train.batch_size} sequences cannot be split evenly over {started} ranks")
    if config.train.precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError("train.precision: fp16 needs a GPU (its gradients must be scaled); use fp32 or bf16 on a CPU")
    torch.backends.cudnn.benchmark = False
    return accelerator


def _tracker_available(name: str) -> bool:
    from accelerate.tracking import get_available_trackers

    return name in [str(t) for t in get_available_trackers()]


def find_resume_point(config: RunConfig, directory: Path, checkpoints: list[Path]) -> Path | None:
    """The checkpoint to go on from, None to start anew, or a path named "finished". Refuses what ``resume`` forbids."""
    status_file = directory / "status.json"
    if config.resume == "never" and status_file.exists():
        raise InputError(f"{directory}: holds a run already; choose another name, or resume=auto to go on with it")
    if config.resume == "must" and not checkpoints:
        raise InputError(f"{directory}: resume=must, but there is no complete checkpoint to go on from")
    if not status_file.exists():
        return None
    refuse_other_configuration(config, directory)
    if json.loads(status_file.read_text(encoding="utf-8"))["status"] == "finished":
        return Path("finished")
    return checkpoints[-1] if checkpoints else None


def refuse_other_configuration(config: RunConfig, directory: Path) -> None:
    """A run goes on only with the configuration it began with; the error names each key that differs."""
    before, now = flat(load_config(directory / "config.yaml").model_dump()), flat(config.model_dump())
    differing = [
        key
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)
    ]
    if differing:
        raise InputError(
            *(f"{key}: the run in {directory} has {before.get(key)!r}, not {now.get(key)!r}; choose another name" for key in differing)  # fmt: skip
        )


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    items: dict[str, Any] = {}
    for key, value in tree.items():
        items |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return items


def build_model(config: RunConfig, model_configuration: Any, checkpoint: Path | None) -> Any:
    """The model: new, with the body of an existing checkpoint, or as the run's own checkpoint left it."""
    from transformers import AutoModel

    from model import load_model, new_model

    if checkpoint is not None:
        model = load_model(checkpoint)
    else:
        model = new_model(model_configuration, stream_seed(config.seed, "init"))
        if config.body.checkpoint is not None:
            body = AutoModel.from_pretrained(config.body.checkpoint, dtype="float32", trust_remote_code=False)
            model.model.load_state_dict(body.state_dict())
    model.train()
    if config.train.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if config.train.compile:
        model.model.compile()
    assert not config.head.options.get("tied", True) or model.lm_head.weight is model.get_input_embeddings().weight
    return model


def build_optimizer(model: Any, config: OptimizerConfig) -> Any:
    """Fused AdamW with two explicit groups: matrices decay, vectors do not."""
    import torch

    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    assert len(matrices) + len(vectors) == len(list(model.parameters())), "every parameter is in exactly one group"
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def prepare(accelerator: Any, config: RunConfig, model: Any, optimizer: Any) -> tuple[Any, Any, Any]:
    """Wrap model and optimizer for the launch, and put the instruments on the model inside."""
    from model import blocks, final_norm
    from stability.telemetry import Telemetry, parameter_groups

    model, optimizer = accelerator.prepare(model, optimizer)
    plain = accelerator.unwrap_model(model, keep_torch_compile=False)
    names = {id(module): name for name, module in plain.named_modules()}
    named_parameters = dict(plain.named_parameters())
    groups = parameter_groups(
        list(named_parameters),
        embedding_prefix=names[id(plain.get_input_embeddings())],
        blocks_prefix=names[id(blocks(plain.model))],
        head_prefix="lm_head",
    )
    telemetry = Telemetry(
        plain.model, blocks(plain.model), final_norm(plain.model), plain.lm_head, named_parameters, groups,
        enabled=config.telemetry.enabled,
    )  # fmt: skip
    return telemetry, model, optimizer


def open_run_directory(run: Run, checkpoint: Path | None) -> None:
    """Restore the state of a run that goes on, and write what describes the run."""
    from stability.checkpoints import load_optimizer, read_state
    from stability.environment import environment
    from stability.spikes import SpikeDetector

    if checkpoint is not None:
        state = read_state(checkpoint)
        load_optimizer(checkpoint, run.model, _plain_optimizer(run))
        run.start_step = state["step"]
        run.detectors = [SpikeDetector.from_state(s) for s in state["spike_detectors"]]
    run.recorder.write_text("config.yaml", dump_config(run.config))
    facts = environment(run.accelerator.num_processes, run.accelerator.device, run.config.train.precision)
    parameters = sum(p.numel() for p in run.telemetry.parameters)
    facts |= {"parameters": parameters, "data": {"store": run.store.path.name, **_data_facts(run.store.manifest)}}
    run.recorder.write_text("environment.json", json.dumps(facts, indent=1) + "\n")
    run.recorder.status("running", run.start_step)
    run.recorder.rewind(run.start_step)
    if checkpoint is not None:
        run.recorder.event("resume", run.start_step, step=run.start_step)
    if run.config.trackers:
        run.accelerator.init_trackers(run.config.name, config=flat(run.config.model_dump(mode="json")))
    run.accelerator.wait_for_everyone()


def _data_facts(manifest: dict[str, Any]) -> dict[str, str]:
    return {"manifest_sha256": hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()}


def _plain_optimizer(run: Run) -> Any:
    return getattr(run.optimizer, "optimizer", run.optimizer)


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

    from stability.telemetry import all_reduce

    began = time.perf_counter()
    config, accelerator = run.config, run.accelerator
    lr = learning_rate(config.optimizer, config.train.steps, step)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    torch.manual_seed(stream_seed(config.seed, "dropout", step, accelerator.process_index))

    micro_batches = split_batch(run, step)
    # Every token of the step counts the same, whichever micro-batch or rank holds it.
    valid = sum(((y_BT != -100).sum() for _, y_BT in micro_batches), start=torch.zeros((), dtype=torch.long)).to(accelerator.device)
    all_reduce(valid, "sum")
    for index, (x_BT, y_BT) in enumerate(micro_batches):
        last = index == len(micro_batches) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(run.model):
            out = run.model(
                input_ids=x_BT.to(accelerator.device, non_blocking=True),
                shift_labels=y_BT.to(accelerator.device, non_blocking=True),
                num_items_in_batch=valid,
                statistics=config.telemetry.enabled,
                use_cache=False,
            )
            # Gradients are averaged over ranks, hence the factor. Once NaN, ``alive`` keeps every later update from happening.
            accelerator.backward(out.loss * (accelerator.num_processes * run.alive))
            run.telemetry.add_losses(out.losses)
    values = update(run)
    run.recorder.add({"step": step, "tokens": step * run.tokens_per_step, "lr": lr}, values)
    run.clock += time.perf_counter() - began
    run.clock_steps += 1


def split_batch(run: Run, step: int) -> list[tuple[Any, Any]]:
    """This rank's share of the step's batch in micro-batches of (x_BT, y_BT)."""
    x_BT, y_BT = run.batches.at(step)
    rows = run.config.train.micro_batch_size or x_BT.shape[0]
    return list(zip(x_BT.split(rows), y_BT.split(rows), strict=True))


def update(run: Run) -> dict[str, Any]:
    """Clip, and step unless loss or gradient is not finite; returns what the step measured."""
    import torch

    telemetry, optimizer, clip_norm = run.telemetry, run.optimizer, run.config.optimizer.clip_norm
    if run.accelerator.scaler is not None:
        run.accelerator.unscale_gradients(optimizer)
    losses = telemetry.loss_values()
    total = telemetry.before_update()
    # The GradScaler of fp16 overflows now and then by design and skips those steps itself; there only the loss decides.
    healthy = losses["loss/objective"].isfinite() & losses["loss/nll"].isfinite()
    if run.accelerator.scaler is None:
        healthy = healthy & total.isfinite()
        # The fused kernel leaves parameters and moments alone where found_inf is 1: no update, and no wait for the device.
        _plain_optimizer(run).found_inf = (~healthy).float()
    run.alive = torch.where(healthy, run.alive, math.nan)
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(telemetry.parameters, clip_norm, total)
    optimizer.step()
    telemetry.after_update()
    optimizer.zero_grad(set_to_none=True)
    return losses | telemetry.collect()


def flush(run: Run, step: int, evaluate: bool, bar: Any) -> bool:
    """Bring the buffered steps over, look for divergence and spikes, evaluate, write. True when the run has diverged."""
    from stability.environment import peak_memory_bytes

    rows = run.recorder.transfer()
    speed = run.clock_steps * run.tokens_per_step / run.clock
    run.clock, run.clock_steps = 0.0, 0
    host = {"throughput/tokens_per_second": speed, "memory/peak_bytes": peak_memory_bytes(run.accelerator.device)}
    rows = [row | host for row in rows]
    bad = first_non_finite(rows, with_gradient=run.accelerator.scaler is None)
    if bad is not None:
        rows = rows[: bad + 1]  # what came after saw no update and means nothing
    elif evaluate:
        rows[-1] |= evaluation(run)
        run.validation_nll = rows[-1]["validation/nll"]
    find_spikes(run, rows, step)
    run.recorder.write_rows(rows)
    for row in rows:
        run.accelerator.log(row, step=row["step"])
    bar.set_postfix({"nll": f"{rows[-1]['loss/nll']:.3f}", "tok/s": f"{speed:,.0f}"}, refresh=False)
    bar.update(rows[-1]["step"] - bar.n)
    return bad is not None and report_divergence(run, rows[-1])


def first_non_finite(rows: list[dict[str, Any]], with_gradient: bool) -> int | None:
    """Index of the first row whose loss (or gradient) is not finite."""
    signals = ("loss/objective", "loss/nll", *(("grad_norm/total",) if with_gradient else ()))
    return next((i for i, row in enumerate(rows) if not all(math.isfinite(row[s]) for s in signals)), None)


def report_divergence(run: Run, row: dict[str, Any]) -> bool:
    """Write the event and the status of a run that ended in a non-finite value."""
    signals = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
    step = row["step"]
    reason = f"{signals[0]} is not finite at step {step}; the parameters are those before that step"
    run.recorder.event("non_finite", step, step=step, signals=signals)
    run.recorder.status("diverged", step, reason)
    run.accelerator.end_training()
    run.accelerator.print(f"diverged: {reason}")
    return True


def find_spikes(run: Run, rows: list[dict[str, Any]], step: int) -> None:
    """Feed the detectors; write each spike that has ended."""
    for detector in run.detectors:
        for row in rows:
            spike = detector.update(row["step"], row[detector.signal])
            if spike is not None:
                run.recorder.event("spike", step, **spike.event())


def evaluation(run: Run) -> dict[str, float]:
    """NLL and objective on the fixed validation set; touches no random stream."""
    import torch

    from data.batches import evaluation_batches
    from stability.telemetry import all_reduce

    config, accelerator = run.config, run.accelerator
    rows = config.train.micro_batch_size or max(1, config.train.batch_size // accelerator.num_processes)
    sums = torch.zeros(3, device=accelerator.device)
    run.model.eval()
    with torch.no_grad():
        for x_BT, y_BT in evaluation_batches(
            run.store.validation.ids, config.data.sequence_length, config.train.eval_sequences, rows,
            accelerator.process_index, accelerator.num_processes,
        ):  # fmt: skip
            out = run.model(input_ids=x_BT.to(accelerator.device), shift_labels=y_BT.to(accelerator.device), use_cache=False)
            sums += torch.stack([out.losses.nll_sum, out.losses.objective_sum, out.losses.valid_N.sum()])
    run.model.train()
    all_reduce(sums, "sum")
    nll, objective, count = sums.tolist()
    return {"validation/nll": nll / count, "validation/objective": objective / count}


# ------------------------------------------------------------------------------------------------- checkpoints and endings


def save_checkpoint(run: Run, step: int) -> None:
    """Write the checkpoint of ``step`` and delete the ones that need not stay. All ranks call it."""
    from stability.checkpoints import optimizer_tensors, prune, write_checkpoint

    tensors = optimizer_tensors(run.model, _plain_optimizer(run))
    weights = run.accelerator.get_state_dict(run.model)
    if run.accelerator.is_main_process:
        plain = run.accelerator.unwrap_model(run.model, keep_torch_compile=False)

        def save_model(directory: Path) -> None:
            plain.save_pretrained(directory, state_dict=weights)
            run.tokenizer.save_pretrained(directory)

        state = {
            "tokens": step * run.tokens_per_step,
            "validation_nll": run.validation_nll,
            "spike_detectors": [detector.state() for detector in run.detectors],
        }
        write_checkpoint(run.directory, step, save_model, tensors, state)
        prune(run.directory, run.config.checkpoint.keep)
    run.accelerator.wait_for_everyone()


def finish(run: Run) -> None:
    """Close what is open and say where the results are."""
    steps = run.config.train.steps
    for detector in run.detectors:
        spike = detector.finish()
        if spike is not None:
            run.recorder.event("spike", steps, **spike.event())
    run.recorder.status("finished", steps)
    run.accelerator.end_training()
    run.accelerator.print(f"finished: validation NLL {run.validation_nll:.4f} nats/token; {run.directory}")


@dataclass
class StopFlag:
    """Whether a signal asked the run to stop."""

    is_set: bool = False


@contextlib.contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """SIGTERM and SIGINT ask for a stop at the next step; a second one acts as usual."""
    flag = StopFlag()
    usual = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def ask(number: int, frame: Any) -> None:
        flag.is_set = True
        signal.signal(number, usual[signal.Signals(number)])

    for number in usual:
        signal.signal(number, ask)
    try:
        yield flag
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def stream_seed(seed: int, purpose: str, *position: int) -> int:
    """Seed of one named random stream (at one step and rank): 63 bits of a hash, so that streams do not overlap."""
    key = ":".join([str(seed), purpose, *map(str, position)])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

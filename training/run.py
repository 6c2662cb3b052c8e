"""A run: everything that train_lm.py's loop holds on to, built at the start of the run or at one of its checkpoints.

Resuming, rewinding and replaying are one thing here: :func:`go_to` a checkpoint, and take steps.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from common.seeds import stream_seed
from configs.schema import RunConfig
from data.batches import Batches, batch_number, evaluation_batches
from data.store import TokenStore, open_store
from ranks.collectives import from_main
from ranks.launch import autocast_sharded
from ranks.watchdog import Watchdog
from record.checkpoints import load_optimizer, read_state
from record.lock import held_by
from record.recorder import Recorder
from record.rewinds import GoingBack, last_rewind
from record.trackers import Trackers
from stability.measure.telemetry import Telemetry
from stability.measure.vitals import Vitals
from stability.watch import Watch

from .build import build_model, build_optimizer, build_telemetry, load_weights, prepare_model
from .checks import check_body, check_memory, check_tokenizer, refuse_other_tokens
from .memory import LEAST_VOCABULARY


@dataclass
class Run:
    """A run in this process. ``directory`` is where its rows, events and checkpoints are."""

    config: RunConfig
    directory: Path
    accelerator: Accelerator
    store: TokenStore
    batches: Batches
    recorder: Recorder
    watch: Watch
    bar: Any
    probe_BT: Tensor
    """The validation sequences whose attention is probed: the same on all ranks, however many there are."""
    watchdog: Watchdog
    trackers: Trackers
    # From here on: what go_to() sets.
    model: nn.Module
    """As prepared for the launch: possibly wrapped."""
    optimizer: AcceleratedOptimizer
    telemetry: Telemetry
    vitals: Vitals
    alive: Tensor
    """A device scalar: 1, and NaN from the first step on at which something was not finite."""
    step: int = 0
    """Optimizer steps taken."""
    diverged: bool = False
    """Whether something was not finite at the last step that came to the host."""
    rewind: GoingBack | None = None
    """The last rewind."""
    validation_nll: float | None = None
    """Of the last row, if that was an evaluation's."""
    began: float = 0.0
    """Clock time at which the steps since the last transfer began; evaluation and checkpoints come before it."""

    @property
    def tokens_per_step(self) -> int:
        return self.config.train.batch_size * self.config.data.sequence_length

    @property
    def skipped(self) -> list[list[int]]:
        """The ranges of batches that are left out: by the configuration and by rewinds."""
        return [*self.config.data.skip_steps, *(self.rewind.skipped if self.rewind else [])]

    def batch_number(self, step: int) -> int:
        """The batch that ``step`` draws."""
        return batch_number(step, self.skipped)

    def bare_model(self) -> Any:
        """The model inside whatever the launch wrapped it in."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)


def build_run(
    config: RunConfig,
    accelerator: Accelerator,
    directory: Path,
    checkpoint: Path | None,
    *,
    writes: bool = True,
    launch: str = "",
    store: TokenStore | None = None,
) -> Run:
    """A run at ``checkpoint``, or at its start.

    Only if ``writes``, and on the main process, does it write to ``directory``. ``launch``: what the directory's lock says while
    it is this launch's. For a replay: ``store``, the tokens, if not those that the configuration leads to now.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    rank, main_process = accelerator.process_index, accelerator.is_main_process
    if checkpoint is None:
        from_main(lambda: check_body(config), accelerator.device)
    if store is None:
        # Once before the text is tokenised, when a given tokenizer's size is not known yet.
        least = getattr(config.data, "vocab_size", None) or (1 if config.body.checkpoint else LEAST_VOCABULARY)
        from_main(lambda: check_memory(config, least, accelerator), accelerator.device)
        store = open_store(config.data, progress=main_process)
    if checkpoint is None:
        from_main(lambda: check_tokenizer(config, store), accelerator.device)
    parameters, memory = from_main(lambda: check_memory(config, store.vocab_size, accelerator), accelerator.device)
    if writes:
        from_main(lambda: refuse_other_tokens(store, directory, checkpoint), accelerator.device)
    batches = Batches(
        store.train.ids,
        config.data.sequence_length,
        config.train.batch_size,
        stream_seed(config.seed, "data"),
        rank=rank,
        world_size=accelerator.num_processes,
    )
    recorder = Recorder(directory, writes=writes and main_process)
    quiet = not (writes and main_process)
    if not quiet:
        step = config.train.batch_size * config.data.sequence_length
        epochs = config.train.steps * config.train.batch_size / batches.sequences_per_epoch
        tokens = f"{step:,} tokens a step, {step * config.train.steps:,} in all ({epochs:.2g} epochs)"
        print(f"{config.name}: {parameters:,} parameters; {tokens}; {memory}", flush=True)
    trainable = _trainable(config, accelerator, store, checkpoint)
    watch = Watch(
        recorder,
        say=(lambda _: None) if quiet else tqdm.write,
        detection=config.detection,
        warmup_steps=config.optimizer.warmup_steps,
    )
    probed = config.telemetry.attention_sequences
    probe = evaluation_batches(store.validation.ids, config.data.sequence_length, probed, probed)
    probe_BT = next(probe)[0].to(accelerator.device)
    # After all that may be mistaken, which would be told in the bar's line.
    bar = tqdm(total=config.train.steps, desc=config.name, unit="step", disable=quiet, dynamic_ncols=True)
    watchdog = Watchdog(
        config.train.stall_seconds,
        tell=functools.partial(_record_lost_ranks, accelerator, directory, launch),
        stacks=directory / f"stalled_rank_{rank}.txt",
        device=accelerator.device,
    )
    trackers = Trackers(config, recorder, watch.say)
    parts = (store, batches, recorder, watch, bar, probe_BT, watchdog, trackers)
    run = Run(config, directory, accelerator, *parts, *trainable)
    _restore(run, checkpoint)
    return run


def _record_lost_ranks(
    accelerator: Accelerator, directory: Path, launch: str, step: int, line: str, missing: list[int]
) -> None:
    """The first of the ranks that are left writes what happened, unless the run has been started again in the meantime."""
    left = [r for r in range(accelerator.num_processes) if r not in missing] or [0]
    mine = launch and (accelerator.is_main_process or held_by(directory) == launch)
    if accelerator.process_index == left[0] and mine:
        recorder = Recorder(directory, writes=True)
        recorder.event("rank_lost", step, step=step, missing=missing, reason=line)
        recorder.status("failed", step, line)


def go_to(run: Run, checkpoint: Path | None) -> None:
    """Bring ``run`` to ``checkpoint`` (None: to its start), whatever it has become since. All ranks call it."""
    del run.model, run.optimizer, run.telemetry, run.vitals  # before the new ones need their memory
    run.accelerator.free_memory()
    clear_device_cache(garbage_collection=True)  # Accelerate collects before it lets its own references go
    trainable = _trainable(run.config, run.accelerator, run.store, checkpoint)
    run.model, run.optimizer, run.telemetry, run.vitals, run.alive = trainable
    _restore(run, checkpoint)


def _trainable(
    config: RunConfig, accelerator: Accelerator, store: TokenStore, checkpoint: Path | None
) -> tuple[nn.Module, AcceleratedOptimizer, Telemetry, Vitals, Tensor]:
    """Model and optimizer as prepared for the launch, their telemetry and vitals, and the flag that they are alive."""
    model = load_weights(checkpoint) if checkpoint else build_model(config, store.vocab_size, store.eos_id)
    model = prepare_model(config, model)
    wrapped, optimizer = accelerator.prepare(model, build_optimizer(model, config.optimizer))
    autocast_sharded(accelerator, wrapped)
    bare = accelerator.unwrap_model(wrapped)
    telemetry = build_telemetry(bare, config)
    names = [name for name, _ in bare.named_parameters()]
    return wrapped, optimizer, telemetry, Vitals(names, telemetry.parameters), torch.ones((), device=accelerator.device)


def _restore(run: Run, checkpoint: Path | None) -> None:
    """Optimizer, detectors and counters as they were at ``checkpoint``, or as they are at the start."""
    run.step, run.validation_nll, run.diverged = 0, None, False
    detectors, alarms = None, []
    if checkpoint is not None:
        state = read_state(checkpoint)
        load_optimizer(checkpoint, run.model, run.optimizer.optimizer)
        run.step, run.validation_nll, detectors = state["step"], state["validation_nll"], state["detectors"]
        alarms = state["alarms"]
        if run.accelerator.scaler is not None:
            run.accelerator.scaler.load_state_dict(state["gradient_scaler"])
    back = from_main(lambda: _as_json(last_rewind(run.directory, run.step)), run.accelerator.device)
    run.rewind = GoingBack(**back) if back else None
    run.watch.restore(detectors, run.step)
    run.watch.carry(alarms)
    run.bar.n = run.bar.initial = run.bar.last_print_n = run.step


def _as_json(back: GoingBack | None) -> dict[str, Any] | None:
    return asdict(back) if back else None

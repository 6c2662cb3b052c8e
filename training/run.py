"""A run: everything that train_lm.py's loop holds on to, built at the start of the run or at one of its checkpoints.

Resuming, rewinding and replaying are one thing here: :func:`go_to` a checkpoint, and take steps.
"""

from __future__ import annotations

import functools
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils.memory import clear_device_cache
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from configs.components import model_config
from configs.errors import InputError
from configs.schema import OptimizerConfig, RunConfig
from configs.seeds import stream_seed
from data.batches import Batches, batch_number, evaluation_batches
from data.store import TokenStore, open_store
from model import attend_causally, blocks, final_norm, load_model, new_model
from stability.checkpoints import list_checkpoints, load_optimizer, read_state
from stability.distributed import from_main
from stability.launch import autocast_sharded
from stability.lock import held_by
from stability.recorder import Recorder
from stability.rewind import GoingBack, last_rewind
from stability.telemetry import Telemetry, parameter_groups
from stability.trackers import Trackers
from stability.vitals import Vitals
from stability.watch import Watch
from stability.watchdog import Watchdog

from .memory import LEAST_VOCABULARY, need_of

_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


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
        from_main(lambda: _check_body(config), accelerator.device)
    if store is None:
        # Once before the text is tokenised, when a given tokenizer's size is not known yet.
        least = getattr(config.data, "vocab_size", None) or (1 if config.body.checkpoint else LEAST_VOCABULARY)
        from_main(lambda: _check_memory(config, least, accelerator), accelerator.device)
        store = open_store(config.data, progress=main_process)
    if checkpoint is None:
        from_main(lambda: _check_tokenizer(config, store), accelerator.device)
    parameters, memory = from_main(lambda: _check_memory(config, store.vocab_size, accelerator), accelerator.device)
    if writes:
        from_main(lambda: _refuse_other_tokens(store, directory, checkpoint), accelerator.device)
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


def _check_body(config: RunConfig) -> None:
    """Raise InputError, before any text is read, if the checkpoint that the body comes from cannot be used."""
    place = config.body.checkpoint
    if place is None:
        return
    if not Path(place).is_dir() and not _HUB_NAME.fullmatch(place):
        raise InputError(f"body.checkpoint: {place}: no such folder")
    if checkpoints := list_checkpoints(Path(place)):
        raise InputError(f"body.checkpoint: {place} is a run; name one of its checkpoints, as {checkpoints[-1]}")
    model_config(config, vocab_size=1, special_id=0)  # the tokens are not known yet; what is said of them comes later


def _check_tokenizer(config: RunConfig, store: TokenStore) -> None:
    """Raise InputError if the checkpoint that the body comes from has another tokenizer than the text."""
    place = config.body.checkpoint
    if place is None or not (Path(place) / "tokenizer.json").is_file():
        return
    theirs: Any = AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    if theirs.get_vocab() != store.load_tokenizer().get_vocab():
        raise InputError(
            f"body.checkpoint: {place} has another tokenizer than the text, so its embeddings are of other tokens; set "
            f"data.vocab_size=null data.tokenizer={place}"
        )


def _check_memory(config: RunConfig, vocabulary: int, accelerator: Accelerator) -> tuple[int, str]:
    """Parameters of the model, and the memory it needs, in words. Raises InputError if it cannot fit. Main process only."""
    need = need_of(
        config,
        vocabulary,
        ranks=accelerator.num_processes,
        sharded=accelerator.is_fsdp2,
        device=accelerator.device,
    )
    need.refuse()
    return need.parameters, str(need)


def _refuse_other_tokens(store: TokenStore, directory: Path, checkpoint: Path | None) -> None:
    """Raise InputError if the tokens were damaged, or are not those of the run that is gone on with."""
    store.verify()
    if checkpoint is not None and read_state(checkpoint)["data"] != store.manifest_hash():
        raise InputError(
            f"{directory}: its text or its tokenizer has changed since {checkpoint.name} was written (the tokens are now those "
            f"of {store.path}); restore them, or choose another name"
        )


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


def build_model(config: RunConfig, vocab_size: int, special_id: int) -> Any:
    """A new model, its body new too or that of an existing checkpoint."""
    model: Any = new_model(model_config(config, vocab_size, special_id), stream_seed(config.seed, "init"))
    if config.body.checkpoint is not None:
        try:
            existing = load_model(config.body.checkpoint, local_files_only=False, body_only=True)
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"body.checkpoint: {config.body.checkpoint}: {' '.join(str(error).split())}") from None
        model.model.load_state_dict(existing.base_model.state_dict())
    return model


def load_weights(checkpoint: Path) -> Any:
    """The model of a run's checkpoint. Raises InputError if its weights are not exactly the model's."""
    try:
        return load_model(checkpoint)
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{checkpoint} cannot be used: {reason}; rename it, and the one before it is") from None


def prepare_model(config: RunConfig, model: Any) -> Any:
    """The model as the configuration wants it trained."""
    model.train()
    attend_causally(model.model, config.data.sequence_length)
    if config.train.gradient_checkpointing:
        # transformers 5.23 renames it and warns about the old name; 5.17 has only the old one.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()
    if config.train.compile:
        model.model.compile()
    return model


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Fused AdamW with two explicit groups: matrices decay, vectors do not."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def build_telemetry(model: Any, config: RunConfig) -> Telemetry:
    """The instruments, on the model inside whatever wraps it."""
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

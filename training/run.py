"""A run: the state of the training loop, built at the start of the run or at one of its checkpoints. Resuming, rewinding
and replaying are the same here: :func:`go_to` a checkpoint, and take steps."""

import functools
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from common.errors import note
from common.files import digest_of
from common.section import Choice, flat
from common.seeds import stream_seed
from configs.kinds import check_kinds
from configs.schema import RunConfig
from data.batches import Batches, batch_number, evaluation_batches
from data.foreign import foreign_tokens
from data.negatives import Negatives, negative_count
from data.store import TokenStore, open_store
from optim.optimizers import build_optimizer, make_optimizer
from ranks.collectives import from_main
from ranks.launch import autocast_sharded
from ranks.watchdog import Watchdog
from record.checkpoints import intervention_tensors, load_optimizer, read_state, start_of
from record.lock import held_by
from record.recorder import Recorder
from record.rewinds import RewindEvent, last_rewind
from record.rows import Row
from record.shards import Staging
from record.trackers import Title, Trackers
from stability.intervene.base import Intervention, make_interventions
from stability.intervene.stages import changes_updates, penalties
from stability.measure.norms import full
from stability.measure.telemetry import Telemetry
from stability.measure.vitals import Vitals
from stability.stress.base import Stress, acting_kinds, check_stresses, make_stresses
from stability.watch import Watch

from .background import Background
from .build import build_model, build_telemetry, load_weights, prepare_model
from .checks import (
    check_body,
    check_memory,
    check_optimizer,
    check_teacher,
    check_tokenizer,
    refuse_other_tokens,
    refuse_sharded_reparam,
)
from .compiled import check_compiler
from .loss_kernel import check_loss_kernel
from .memory import LEAST_VOCABULARY

BEGAN = "_began"
"""Where an intervention's ``began`` is kept among its tensors, if it is not 0."""


@dataclass
class Run:
    """A run in this process. ``directory`` holds its rows, events and checkpoints."""

    config: RunConfig
    directory: Path
    accelerator: Accelerator
    store: TokenStore
    batches: Batches
    recorder: Recorder
    watch: Watch
    bar: Any
    probe_BT: Tensor
    """Validation sequences whose attention is probed: the same on all ranks, however many there are."""
    watchdog: Watchdog
    trackers: Trackers
    stresses: list[Stress]
    negatives: Negatives | None
    loss_kernel: dict[str, Any]
    """What evaluates the loss here, as environment.json has it."""
    background: Background
    """Where a checkpoint in shards is written."""
    launch: str
    """Eight digits that tell this launch from others."""
    # Set by go_to(), from here on:
    model: nn.Module
    """As prepared for the launch: possibly wrapped."""
    optimizer: AcceleratedOptimizer
    telemetry: Telemetry
    vitals: Vitals
    settings: list[dict[str, Any]]
    """The optimizer's hyperparameters by parameter group, as configured."""
    alive: Tensor
    """Device scalar: 1, and NaN from the first step on at which something was not finite."""
    interventions: dict[str, Intervention] = field(default_factory=dict)
    """By name, in the configuration's order."""
    edge_every: int | None = None
    """Steps between measurements of how near the edge a step came; a replay measures its last step, too."""
    handles: list[Any] = field(default_factory=list)
    """Of the interventions' hooks on the model."""
    step: int = 0
    """Optimizer steps taken."""
    diverged: bool = False
    """Whether something was not finite at the last step that was flushed."""
    spoilt: bool = False
    """Whether the last step's own update made parameters or moments not finite."""
    rows: list[Row] = field(default_factory=list)
    """The rows flushed last; a run that diverges does so at the last of them."""
    rewind: RewindEvent | None = None
    """The last rewind."""
    validation_nll: float | None = None
    """Of the last row, if it was evaluated."""
    reached: bool = False
    """Whether all parameters of the head are known to get gradients."""
    staging: Staging = field(default_factory=Staging)
    """Copies of this rank's shards while they are written."""
    began: float = 0.0
    """Clock time at which the steps since the last flush began; excludes evaluation and checkpoints."""

    @property
    def tokens_per_step(self) -> int:
        """Tokens over all ranks."""
        return self.config.train.batch_size * self.config.data.sequence_length

    @property
    def skipped(self) -> list[list[int]]:
        """Ranges of skipped batches, from the configuration and from rewinds."""
        return [*self.config.data.skip_steps, *(self.rewind.skipped if self.rewind else [])]

    @property
    def may_rewind(self) -> bool:
        """Whether an intervention may take the run back."""
        return any(intervention.decides() for intervention in self.interventions.values())

    def batch_number(self, step: int) -> int:
        """The batch that ``step`` draws."""
        return batch_number(step, self.skipped)

    def bare_model(self) -> Any:
        """The model without the launch's wrapper. (Accelerate's own function looks for packages in the file system each time.)"""
        return self.model.module if isinstance(self.model, DistributedDataParallel) else self.model


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

    ``writes``: whether the main process writes to ``directory``. ``launch``: the content of the directory's lock while this
    launch holds it. ``store``: for a replay, the tokens if they are not those the configuration now leads to.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    rank, main_process = accelerator.process_index, accelerator.is_main_process
    store, said = _checked(config, accelerator, checkpoint, store)
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
        print(f"{config.name}: {said.parameters:,} parameters; {tokens}; {said.memory}", flush=True)
    trainable = _trainable(config, accelerator, store, checkpoint)
    bare = accelerator.unwrap_model(trainable[0], keep_torch_compile=False)
    loss_kernel = check_loss_kernel(config, bare.lm_head)
    stresses = make_stresses(config.stress, seed=config.seed, store=store, sequence_length=config.data.sequence_length)
    from_main(lambda: check_stresses(stresses, bare, trainable[1].optimizer), accelerator.device)
    negatives = _negatives(config, store)
    watch = Watch(
        recorder,
        say=(lambda _: None) if quiet else tqdm.write,
        detector=config.detection.detector,
        signals=config.detection.signals,
        warmup_steps=config.optimizer.warmup_steps,
        acting=functools.partial(acting_kinds, stresses),
    )
    probed = config.telemetry.attention_sequences
    probe = evaluation_batches(store.validation.ids, config.data.sequence_length, probed, probed)
    probe_BT = next(probe)[0].to(accelerator.device)
    # Not shown before the first steps: no error message is to land in the bar's line.
    bar = tqdm(total=config.train.steps, desc=config.name, unit="step", disable=quiet, dynamic_ncols=True, delay=1e-3)
    watchdog = Watchdog(
        config.train.stall_seconds,
        report=functools.partial(_record_lost_ranks, accelerator, directory, launch),
        stacks=directory / f"stalled_rank_{rank}.txt",
        device=accelerator.device,
    )
    title = Title(config.tracking.project, config.tracking.run_name or config.name, flat(config.model_dump()))
    trackers = Trackers(config.trackers, title, recorder, watch.say)
    seen = (store, batches, recorder, watch, bar, probe_BT, watchdog, trackers, stresses, negatives, loss_kernel)
    parts = (*seen, Background(accelerator.device), digest_of(launch)[:8])
    run = Run(config, directory, accelerator, *parts, *trainable, edge_every=config.telemetry.edge_every)
    _restore(run, checkpoint)
    if not quiet:
        _print_notes(run)
    return run


class _Size(NamedTuple):
    """How large a run is: its parameters, and its memory in words."""

    parameters: int
    memory: str


def _checked(
    config: RunConfig, accelerator: Accelerator, checkpoint: Path | None, store: TokenStore | None
) -> tuple[TokenStore, _Size]:
    """The tokens, and how large the run is, once everything that can be refused before the model is built has been checked."""
    from_main(lambda: refuse_sharded_reparam(config, accelerator), accelerator.device)
    if checkpoint is None:
        from_main(lambda: check_body(config), accelerator.device)
    if store is None:
        # A first check before the text is tokenised, when the size of a given tokenizer is not known yet.
        least = config.data.options.get("vocab_size") or (1 if config.body.checkpoint else LEAST_VOCABULARY)
        from_main(lambda: check_memory(config, least, accelerator), accelerator.device)
        store = open_store(config.data, progress=accelerator.is_main_process)
    tokens = store
    if checkpoint is None:
        from_main(lambda: check_tokenizer(config, tokens), accelerator.device)
    from_main(lambda: check_teacher(config, tokens, checkpoint), accelerator.device)
    size = _Size(*from_main(lambda: check_memory(config, tokens.vocab_size, accelerator), accelerator.device))
    return tokens, size


def _negatives(config: RunConfig, store: TokenStore) -> Negatives | None:
    """The negatives of a configuration. Raises InputError for a text that cannot be read."""
    if (n := config.negatives) is None:
        return None
    corpus = None
    if n.kind == "corpus":
        keys = ("negatives.paths", "negatives.text_field")
        corpus = foreign_tokens(store, n.paths, n.text_field, config.data.sequence_length, keys)
    return Negatives(
        n.kind,
        count=negative_count(n.share, config.train.batch_size),
        batch_size=config.train.batch_size,
        vocab_size=store.vocab_size,
        seed=config.seed,
        corpus=corpus,
    )


def _print_notes(run: Run) -> None:
    """Say what may not be expected of the model and the interventions, above the bar."""
    config, model = run.config, run.bare_model()
    with tqdm.external_write_mode(file=sys.stderr):
        if config.train.compile:
            note(
                "train.compile: the first step, and a signal during it, waits for the compiler: seconds if torch has kept code "
                "for this shape, else half a minute and more"
            )
        for key, kind, part in (
            ("head", config.head.kind, model.lm_head),
            ("objective", config.objective.kind, model.objective),
        ):
            if part.mixes_positions:
                note(f"{key}.kind: {kind}: {part.mixes_positions}; its training losses know what is still to come")
        for name, intervention in run.interventions.items():
            for text in intervention.notes(run.config.train.steps):
                note(f"interventions: {name} {text}")


def _record_lost_ranks(
    accelerator: Accelerator, directory: Path, launch: str, step: int, line: str, missing: list[int]
) -> None:
    """The first remaining rank records the loss, unless the run has been restarted in the meantime."""
    left = [r for r in range(accelerator.num_processes) if r not in missing] or [0]
    mine = launch and (accelerator.is_main_process or held_by(directory) == launch)
    if accelerator.process_index == left[0] and mine:
        recorder = Recorder(directory, writes=True)
        recorder.event("rank_lost", step, step=step, missing=missing, reason=line)
        recorder.status("failed", step, line)


def go_to(run: Run, checkpoint: Path | None) -> None:
    """Bring ``run`` to ``checkpoint`` (None: to its start), whatever its state. All ranks call it."""
    del run.model, run.optimizer, run.telemetry, run.vitals, run.interventions  # free their memory for the new ones
    run.accelerator.free_memory()
    clear_device_cache(garbage_collection=True)  # Accelerate collects garbage before it drops its own references
    trainable = _trainable(run.config, run.accelerator, run.store, checkpoint)
    run.model, run.optimizer, run.telemetry, run.vitals, run.settings, run.alive = trainable
    _restore(run, checkpoint)


def _trainable(
    config: RunConfig, accelerator: Accelerator, store: TokenStore, checkpoint: Path | None
) -> tuple[nn.Module, AcceleratedOptimizer, Telemetry, Vitals, list[dict[str, Any]], Tensor]:
    """Model and optimizer as prepared for the launch, telemetry and vitals on them, the optimizer's settings, and the ``alive``
    flag."""
    model = load_weights(checkpoint, config) if checkpoint else build_model(config, store.vocab_size, store.eos_id)
    if config.train.compile and accelerator.device.type == "cpu":
        check_compiler()
    model = prepare_model(config, model)
    check_optimizer(config.optimizer, accelerator.device)
    wrapped, optimizer = accelerator.prepare(model, build_optimizer(model, config.optimizer))
    autocast_sharded(accelerator, wrapped)
    bare = accelerator.unwrap_model(wrapped)
    telemetry = build_telemetry(bare, config)
    names = [name for name, _ in bare.named_parameters()]
    vitals = Vitals(names, telemetry.parameters, make_optimizer(config.optimizer).moments)
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return wrapped, optimizer, telemetry, vitals, settings, torch.ones((), device=accelerator.device)


def interventions_of(config: RunConfig) -> dict[str, Intervention]:
    """All interventions of a configuration; ``optimizer.clip_norm`` is shorthand for a first one."""
    limit = config.optimizer.clip_norm
    clipping = [] if limit is None else [Choice.model_validate({"kind": "clip_norm", "max_norm": limit})]
    return make_interventions([*clipping, *config.interventions])


def _restore(run: Run, checkpoint: Path | None) -> None:
    """Restore everything that steps change, except the model, to ``checkpoint`` or to the start."""
    run.step, run.validation_nll, run.diverged, run.spoilt = 0, None, False, False
    run.handles = []  # those of another model
    attach_interventions(run, interventions_of(run.config))
    check_stresses(run.stresses, run.bare_model(), run.optimizer.optimizer)
    for stress in run.stresses:
        stress.attach(run.bare_model(), functools.partial(_acts_now, run, stress))
    detectors, alarms = None, []
    if checkpoint is not None:
        state = read_state(checkpoint)
        load_optimizer(checkpoint, run.model, run.optimizer.optimizer)
        run.step, run.validation_nll, detectors = state["step"], state["validation_nll"], state["detectors"]
        tensors, alarms = intervention_tensors(checkpoint), state["alarms"]
        if checkpoint == start_of(run.directory):  # another run's, which may have had other interventions
            theirs = interventions_of(check_kinds(RunConfig.model_validate(state["config"]), recorded=True))
            same = [n for n, i in run.interventions.items() if n in theirs and i.options == theirs[n].options]
            tensors, alarms = {key: t for key, t in tensors.items() if key.partition(".")[0] in same}, []
            tensors |= {f"{n}.{BEGAN}": torch.tensor(run.step) for n in run.interventions if n not in same}
        load_interventions(run, tensors)
        if run.accelerator.scaler is not None and state["gradient_scaler"] is not None:  # of a branch from fp32
            run.accelerator.scaler.load_state_dict(state["gradient_scaler"])
    found = from_main(
        lambda: asdict(back) if (back := last_rewind(run.directory, run.step)) else None, run.accelerator.device
    )
    run.rewind = RewindEvent(**found) if found else None
    run.watch.restore(detectors, run.step, alarms)
    run.bar.n = run.bar.initial = run.bar.last_print_n = run.step


def attach_interventions(run: Run, interventions: dict[str, Intervention]) -> None:
    """Let these interventions act on the run, instead of those it has."""
    for handle in run.handles:
        handle.remove()
    run.interventions, model = interventions, run.bare_model()
    run.handles = [h for i in interventions.values() for h in i.attach(model, run.optimizer.optimizer)]
    model.penalties = penalties(interventions)
    if changes_updates(interventions):
        run.telemetry.keep_before()


def _acts_now(run: Run, stress: Stress) -> bool:
    """Whether a stress acts at the current step."""
    step = run.step + 1
    return stress.acts(step, run.batch_number(step))


def interventions_state(run: Run) -> dict[str, Tensor]:
    """The state of all interventions as ``<name>.<key>``: copies, whole even if sharded. All ranks call it."""
    began = {f"{name}.{BEGAN}": torch.tensor(i.began) for name, i in run.interventions.items() if i.began}
    return began | {
        f"{name}.{key}": full(t.detach()).clone(memory_format=torch.contiguous_format)
        for name, intervention in run.interventions.items()
        for key, t in intervention.state().items()
    }


def load_interventions(run: Run, tensors: Mapping[str, Tensor]) -> None:
    """Restore what :func:`interventions_state` returned."""
    device = run.accelerator.device
    for name, intervention in run.interventions.items():
        own = {k.removeprefix(f"{name}."): t for k, t in tensors.items() if k.startswith(f"{name}.")}
        intervention.began = int(own.pop(BEGAN, 0))
        if own:
            intervention.load({key: t.to(device) for key, t in own.items()})

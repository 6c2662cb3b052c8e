"""The memory that a rank needs and has, reported and checked before anything is allocated.

What a step holds for certain follows from the shapes of the parameters: weights, gradients and both Adam moments in
float32, the copy of the weights that telemetry or an intervention keeps, DDP's second copy of the gradients (its reduction
buckets), or FSDP2's shards along each first axis and what it gathers, and what is made around an update. Activations are
estimated; benchmarks/simulate.py counts them by running the model.

Shapes: W ranks, V vocabulary, D width, T positions, L layers.
"""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from common.errors import InputError
from configs.schema import RunConfig
from model import SwapHeadForCausalLM, blocks
from model.chunked import chunk_rows
from stability.intervene.base import make_interventions
from stability.intervene.stages import changes_updates, edge_reads

from .build import model_config

FLOAT32 = 4
MEASURED_TENSORS, SCALED_TENSORS = 4, 3
"""Temporaries of the largest parameter's size while Adam's moments are measured, and while an update is scaled."""
GATHERED_BLOCKS = 2
"""Blocks that FSDP2 holds whole at once: the current one and the one being gathered or reduced."""
LEAST_VOCABULARY = 512
"""Assumed for a tokenizer that has not been read yet; the padding tokens of all bodies are below it."""
GIB = 1 << 30


@dataclass(frozen=True)
class Shapes:
    """Shapes of a model's parameters, each once, grouped as FSDP2 gathers them."""

    blocks: list[list[tuple[int, ...]]]
    """By transformer block."""
    rest: list[tuple[int, ...]]
    """All others: embeddings, the final normalisation, the head's own."""
    input_embedding: tuple[int, ...] | None
    """The input embedding if it is not tied: FSDP2 gathers it like a block."""
    vocabulary: tuple[int, int]
    """Rows and width of the output embedding, padding included."""
    buffers: int
    """Bytes of buffers, which DDP broadcasts in every forward pass."""
    length: int
    """T"""

    @property
    def all(self) -> list[tuple[int, ...]]:
        """Every parameter's shape."""
        return [shape for block in self.blocks for shape in block] + self.rest

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return count(self.all)

    @property
    def staying(self) -> int:
        """Parameters that FSDP2 keeps gathered from the forward to the backward pass."""
        return count(self.rest) - (math.prod(self.input_embedding) if self.input_embedding else 0)

    def shard(self, ranks: int) -> int:
        """Parameters on rank 0, which holds the most under FSDP2: the first part of each along its first axis."""
        return sum(math.ceil(math.prod(shape[:1]) / ranks) * math.prod(shape[1:]) for shape in self.all)

    def flops_per_token(self) -> int:
        """FLOPs of a forward and a backward pass, as PaLM counts them (arXiv 2204.02311, appendix B).

        6 per parameter in a matrix product, the head's included, and 12 L D T for attention as if over all positions.
        Activation checkpointing adds a third of the blocks' share.
        """
        rows, width = self.vocabulary
        matrices = sum(math.prod(shape) for block in self.blocks for shape in block if len(shape) > 1)
        return 6 * (matrices + rows * width) + 12 * len(self.blocks) * width * self.length


def count(shapes: Iterable[tuple[int, ...]]) -> int:
    """Total number of elements."""
    return sum(math.prod(shape) for shape in shapes)


def shapes_of(model: Any, length: int) -> Shapes:
    """The shapes of one of this project's models, on any device."""
    stack: nn.ModuleList = blocks(model.model)
    parts = [list(block.parameters()) for block in stack]
    inside = {id(parameter) for part in parts for parameter in part}
    rows, width = model.lm_head.weight.shape
    embedding = model.get_input_embeddings().weight
    return Shapes(
        [[tuple(p.shape) for p in part] for part in parts],
        [tuple(p.shape) for p in model.parameters() if id(p) not in inside],
        None if embedding is model.lm_head.weight else tuple(embedding.shape),
        (rows, width),
        sum(b.numel() * b.element_size() for b in model.buffers()),
        length,
    )


def skeleton(config: RunConfig, vocabulary: int) -> SwapHeadForCausalLM:
    """A run's model on torch's meta device: names and shapes without memory."""
    with torch.device("meta"):
        return SwapHeadForCausalLM(model_config(config, vocabulary, 0))


@dataclass(frozen=True)
class Memory:
    """Bytes that one rank holds on its device at the peak of a step."""

    weights: int
    gradients: int
    moments: int
    telemetry: int
    buckets: int
    """DDP's copy of the gradients."""
    gathered: int
    """What FSDP2 holds whole: the embeddings, two blocks, and their gradients."""
    working: int
    """Activations and the head's buffers."""
    update: int = 0
    """Copies and temporaries around the update, when the activations are gone."""
    staging: int = 0
    """The copy of the shards of a checkpoint while they are written, where the device is main memory."""

    @property
    def lasting(self) -> int:
        """What is held at all times and is known for certain."""
        return self.weights + self.gradients + self.moments + self.telemetry + self.buckets + self.staging

    @property
    def total(self) -> int:
        """The peak: of the backward pass, or of the update if that takes more."""
        return self.lasting + self.gathered + max(self.working, self.update)


def state_memory(shapes: Shapes, ranks: int, sharded: bool, telemetry: bool, working: int) -> Memory:
    """Memory of one of ``ranks``; ``sharded`` means FSDP2 instead of DDP; ``telemetry``: whether the parameters before the update
    are kept; ``working`` is what activations take."""
    held = FLOAT32 * (shapes.shard(ranks) if sharded else shapes.parameters)
    whole = GATHERED_BLOCKS * max(map(count, shapes.blocks)) + count(shapes.rest)
    return Memory(
        weights=held,
        gradients=held,
        moments=2 * held + FLOAT32 * len(shapes.all),  # a step count for each parameter
        telemetry=held if telemetry else 0,
        buckets=held if ranks > 1 and not sharded else 0,
        gathered=2 * FLOAT32 * whole if sharded else 0,
        working=working,
    )


def staged(shapes: Shapes, ranks: int) -> int:
    """Main memory of the first of ``ranks``, which has the most, to which FSDP2 copies weights, moments and step counts from its
    first checkpoint on (record.shards.Staging)."""
    return 3 * FLOAT32 * shapes.shard(ranks) + FLOAT32 * len(shapes.all)


def update_memory(config: RunConfig, shapes: Shapes, ranks: int, sharded: bool) -> int:
    """Bytes that interventions and the measurement of the edge hold around an update, beside what lasts: the gradients as they
    came, where something changes single ones of them; the difference that the update made; what interventions make of it."""
    interventions = make_interventions(config.interventions)
    held = FLOAT32 * (shapes.shard(ranks) if sharded else shapes.parameters)
    largest = FLOAT32 * max(map(math.prod, shapes.all)) // (ranks if sharded else 1)
    measured = config.telemetry.measures("updates") and config.telemetry.edge_every is not None
    changed = bool(config.stress) or any(i.has("on_tensors") for i in interventions.values())
    kept = held if changed and (measured or "losses" in edge_reads(interventions)) else 0
    temporary = [MEASURED_TENSORS * largest] if measured else [0]
    temporary += [max(held, SCALED_TENSORS * largest)] if changes_updates(interventions) else []
    temporary += [i.update_copies * held + largest for i in interventions.values() if i.update_copies]
    return kept + max(temporary)


def micro_batches(config: RunConfig, ranks: int) -> tuple[int, int]:
    """Sequences in a rank's micro-batch, and number of micro-batches per step."""
    share = config.train.batch_size // ranks
    rows = min(share, config.train.micro_batch_size or share)
    return rows, math.ceil(share / rows) if rows else 0


def activations(config: RunConfig, shapes: Shapes, sequences: int, device: str) -> int:
    """Estimated bytes of a micro-batch of ``sequences`` beyond parameters and gradients.

    Assumes that each matrix of a block keeps its input and output for the backward pass in float32 (norms and the residual
    stream are float32 under autocast too), that two chunks of logits exist, that autocast and sigmaReparam copy each matrix, and
    that
    attention keeps no T x T matrix. An activation function written in Python (gelu_new) takes more.
    """
    tokens, (rows, width) = sequences * shapes.length, shapes.vocabulary
    matrices = [[shape for shape in block if len(shape) > 1] for block in shapes.blocks]
    kept = [sum(shape[-1] + shape[-2] for shape in block) for block in matrices]
    body = width * len(kept) + max(kept) if config.train.gradient_checkpointing else sum(kept)
    copies = 0 if config.train.precision == "fp32" else FLOAT32 // 2 * sum(map(count, matrices))
    if config.body.sigma_reparam:
        copies += FLOAT32 * sum(map(count, matrices))
    logits = 2 * FLOAT32 * rows * chunk_rows(tokens, rows, device)
    return FLOAT32 * tokens * (body + 2 * width) + copies + logits


@dataclass(frozen=True)
class Need:
    """What a rank needs on its device, and what is free there, in bytes."""

    parameters: int
    memory: Memory
    free: int
    loading: int
    """Main memory taken by the model while it is built or loaded: whole, and not yet on a GPU."""
    free_to_load: int

    @property
    def certain(self) -> int:
        """Everything but activations and what FSDP2 gathers, which are estimates."""
        return self.memory.lasting + self.memory.update

    def refuse(self) -> None:
        """Raise InputError if the run cannot fit, whatever its batch size."""
        if self.certain > self.free:
            raise InputError(
                f"body: {self.parameters:,} parameters need {_size(self.certain)} of memory on each rank for weights, gradients, "
                f"moments and copies of them alone, but {_size(self.free)} are free; make the body smaller or shard it (FSDP2)"
            )
        if self.loading > self.free_to_load:
            raise InputError(
                f"body: each rank builds its {self.parameters:,} parameters in {_size(self.loading)} of main memory, but "
                f"{_size(self.free_to_load)} are free for it; make the body smaller or start fewer ranks on a machine"
            )

    def __str__(self) -> str:
        total, activations, free = map(_size, (self.memory.total, self.memory.working, self.free))
        text = f"about {total} of memory ({activations} of it activations) of {free} free"
        tight = self.memory.total > self.free
        return f"{text}: it may not fit unless train.micro_batch_size is smaller" if tight else text


def need_of(config: RunConfig, vocabulary: int, *, ranks: int, sharded: bool, device: torch.device) -> Need:
    """What each rank of a run needs. Raises InputError for a body that cannot be built or a head that cannot be sharded."""
    model = skeleton(config, vocabulary)
    scalars = [name for name, p in model.named_parameters() if p.dim() == 0]
    if sharded and scalars:
        raise InputError(
            f"head.kind: {config.head.kind}: FSDP2 cannot shard a parameter without dimensions; "
            f"give {', '.join(scalars)} the shape (1,)"
        )
    shapes = shapes_of(model, config.data.sequence_length)
    working = activations(config, shapes, micro_batches(config, ranks)[0], device.type)
    keeps = config.telemetry.measures("updates") or changes_updates(make_interventions(config.interventions))
    memory = state_memory(shapes, ranks, sharded, keeps, working)
    staging = staged(shapes, ranks) if sharded and device.type == "cpu" else 0
    memory = replace(memory, update=update_memory(config, shapes, ranks, sharded), staging=staging)
    models = 1 if config.body.checkpoint is None else 2  # the new one, and the one that its body comes from
    loading = models * FLOAT32 * shapes.parameters
    return Need(shapes.parameters, memory, free_memory(device), loading, free_memory(torch.device("cpu")))


def _size(size: int) -> str:
    return f"{size / GIB:,.1f} GiB" if size >= GIB else f"{size >> 20} MiB"


def free_memory(device: torch.device) -> int:
    """Bytes this process may still take: on its GPU, or as its share of main memory and of its control group's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    room = [psutil.virtual_memory().available, *group_room(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]
    return min(room) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def group_room(membership: Path, root: Path) -> list[int]:
    """Bytes left below each memory limit of this process's control groups (containers, SLURM jobs), of version 1 or 2."""
    rooms = []
    for line in _text(membership).splitlines():  # none where there is no Linux
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            top, limit, used, prefix = root, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            # Statistics without the prefix are those of the group without its children; usage includes them.
            top, limit, used, prefix = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        else:
            continue
        group = top / path.lstrip("/")
        for place in (group, *group.parents):
            if not place.is_relative_to(top):
                break
            most = _text(place / limit).strip()
            if most.isdecimal():  # otherwise "max": no limit
                # Cached file pages count as used, but are released on demand.
                files = {f"{prefix}active_file", f"{prefix}inactive_file"}
                entries = [entry.split() for entry in _text(place / "memory.stat").splitlines()]
                cached = sum(int(value) for name, value in entries if name in files)
                rooms.append(max(0, int(most) - max(0, int(_text(place / used) or 0) - cached)))
    return rooms


def _text(path: Path) -> str:
    """A file's text; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""

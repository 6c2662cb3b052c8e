"""The memory that a rank needs for a run, and what there is of it: told and checked before anything is allocated.

What a step holds for sure follows from the shapes of the parameters and from what the code does with them:

- parameters, gradients and both moments of AdamW are float32, whatever ``train.precision`` is: under bf16 and fp16 the float32
  parameters are themselves the master weights, and autocast makes copies of them for the matrix products;
- telemetry holds a second copy of the parameters, to measure the update;
- DDP holds gradients a second time, in the buckets that it reduces (gradient_as_bucket_view is off, PyTorch's default);
- FSDP2 deals every parameter's first axis out to the ranks; of some it gathers the whole.

Activations are an estimate here, :func:`activations`; benchmarks/simulate.py counts them by running the model.

Shapes: W ranks, V vocabulary, D width, T positions, L layers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from common.errors import InputError
from configs.schema import RunConfig
from model import SwapHeadForCausalLM, blocks
from model.chunked import chunk_rows

from .build import model_config

FLOAT32 = 4
GATHERED_BLOCKS = 2
"""Blocks that FSDP2 holds whole at once: the one at work and the one being gathered, or whose gradient is being reduced."""
LEAST_VOCABULARY = 512
"""Of a tokenizer that is not read yet; padding tokens of all bodies are below it."""
GIB = 1 << 30


@dataclass(frozen=True)
class Shapes:
    """The parameters of a model, each once, by the part that FSDP2 gathers together."""

    blocks: list[list[tuple[int, ...]]]
    """Those of each transformer block."""
    rest: list[tuple[int, ...]]
    """All others: embeddings, the last normalisation, what the head has of its own."""
    input_embedding: tuple[int, ...] | None
    """The one of them that FSDP2 gathers like a block: the input embedding, where the head has another."""
    vocabulary: tuple[int, int]
    """The rows and the width of the output embedding, padding included."""
    buffers: int
    """Bytes of buffers, which DDP sends from rank 0 to all in every forward pass."""
    length: int
    """T"""

    @property
    def all(self) -> list[tuple[int, ...]]:
        """Every parameter's shape."""
        return [shape for block in self.blocks for shape in block] + self.rest

    @property
    def parameters(self) -> int:
        """How many numbers they are."""
        return count(self.all)

    @property
    def staying(self) -> int:
        """Parameters that FSDP2, once they are gathered for the forward pass, keeps whole until the backward pass."""
        return count(self.rest) - (math.prod(self.input_embedding) if self.input_embedding else 0)

    @property
    def largest_block(self) -> int:
        """Parameters of the largest block."""
        return max(count(block) for block in self.blocks)

    def shard(self, ranks: int) -> int:
        """Parameters that rank 0, which has the most, holds under FSDP2: of each the first part of its first axis."""
        return sum(math.ceil(shape[0] / ranks) * math.prod(shape[1:]) for shape in self.all)

    def flops_per_token(self) -> int:
        """Of a forward and a backward pass, as PaLM counts them (Chowdhery et al. 2022, arXiv 2204.02311, appendix B).

        6 for each parameter in a matrix product, the head's included, and 12 L D T for those of attention, as if it looked at
        all positions. Activation checkpointing takes a third of the blocks' share again.
        """
        rows, width = self.vocabulary
        matrices = sum(math.prod(shape) for block in self.blocks for shape in block if len(shape) > 1)
        return 6 * (matrices + rows * width) + 12 * len(self.blocks) * width * self.length


def count(shapes: Iterable[tuple[int, ...]]) -> int:
    """Numbers in tensors of these shapes."""
    return sum(math.prod(shape) for shape in shapes)


def shapes_of(model: Any, length: int) -> Shapes:
    """The shapes of a model of this project, on whatever device."""
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
    """The model of a run without memory for it, on torch's meta device: names and shapes of all parameters."""
    with torch.device("meta"):
        return SwapHeadForCausalLM(model_config(config, vocabulary, 0))


@dataclass(frozen=True)
class Memory:
    """Bytes that one rank holds on its device at the worst moment of a step."""

    weights: int
    gradients: int
    moments: int
    telemetry: int
    buckets: int
    """DDP's copy of the gradients."""
    gathered: int
    """What FSDP2 holds whole: the embeddings and two blocks, and as much for their gradients."""
    working: int
    """Activations, and what the head works with."""

    @property
    def total(self) -> int:
        """The sum."""
        return sum(getattr(self, field.name) for field in fields(self))


def state_memory(shapes: Shapes, ranks: int, sharded: bool, telemetry: bool, working: int) -> Memory:
    """Of one rank of ``ranks``; ``sharded``: FSDP2 instead of DDP; ``working``: what its activations take."""
    held = FLOAT32 * (shapes.shard(ranks) if sharded else shapes.parameters)
    whole = GATHERED_BLOCKS * shapes.largest_block + count(shapes.rest)
    return Memory(
        weights=held,
        gradients=held,
        moments=2 * held + FLOAT32 * len(shapes.all),  # each parameter counts its steps
        telemetry=held if telemetry else 0,
        buckets=held if ranks > 1 and not sharded else 0,
        gathered=2 * FLOAT32 * whole if sharded else 0,
        working=working,
    )


def micro_batches(config: RunConfig, ranks: int) -> tuple[int, int]:
    """Sequences of one micro-batch of a rank, and how many micro-batches a step has."""
    share = config.train.batch_size // ranks
    rows = min(share, config.train.micro_batch_size or share)
    return rows, math.ceil(share / rows) if rows else 0


def activations(config: RunConfig, shapes: Shapes, sequences: int, device: str) -> int:
    """About how many bytes a micro-batch of ``sequences`` takes beyond parameters and gradients.

    Each matrix of a block is taken to keep its input and its output for the backward pass, in float32 as norms and the residual
    stream are under autocast too, and the head's chunk of logits to be there twice; autocast keeps a copy of each matrix.
    Attention is taken to keep no T x T matrix. An activation function written out in Python (gelu_new) takes more.
    """
    tokens, (rows, width) = sequences * shapes.length, shapes.vocabulary
    matrices = [[shape for shape in block if len(shape) > 1] for block in shapes.blocks]
    kept = [sum(shape[-1] + shape[-2] for shape in block) for block in matrices]
    body = width * len(kept) + max(kept) if config.train.gradient_checkpointing else sum(kept)
    copies = 0 if config.train.precision == "fp32" else FLOAT32 // 2 * sum(map(count, matrices))
    logits = 2 * FLOAT32 * rows * chunk_rows(tokens, rows, device)
    return FLOAT32 * tokens * (body + 2 * width) + copies + logits


@dataclass(frozen=True)
class Need:
    """What a rank needs on its device, and what it may take there, in bytes."""

    parameters: int
    memory: Memory
    free: int
    loading: int
    """What the machine holds of the model for this rank while it is built or loaded: whole, and not yet on a GPU."""
    free_to_load: int

    @property
    def certain(self) -> int:
        """All but the activations and what FSDP2 gathers, which are estimates."""
        return self.memory.total - self.memory.working - self.memory.gathered

    def refuse(self) -> None:
        """Raise InputError if the run cannot fit, whatever its batches are."""
        if self.certain > self.free:
            raise InputError(
                f"body: {self.parameters:,} parameters need {_size(self.certain)} of memory on each rank for weights, gradients, "
                f"moments and telemetry alone, but {_size(self.free)} are free; make the body smaller or shard it (FSDP2)"
            )
        if self.loading > self.free_to_load:
            raise InputError(
                f"body: each rank builds its {self.parameters:,} parameters in {_size(self.loading)} of main memory, but "
                f"{_size(self.free_to_load)} are free for it; make the body smaller or start fewer ranks on a machine"
            )

    def __str__(self) -> str:
        activations = _size(self.memory.working)
        told = (
            f"about {_size(self.memory.total)} of memory ({activations} of it activations) of {_size(self.free)} free"
        )
        tight = self.memory.total > self.free
        return f"{told}: it may not fit unless train.micro_batch_size is smaller" if tight else told


def need_of(config: RunConfig, vocabulary: int, *, ranks: int, sharded: bool, device: torch.device) -> Need:
    """What each rank of a run needs. Raises InputError for a body that cannot be built."""
    shapes = shapes_of(skeleton(config, vocabulary), config.data.sequence_length)
    working = activations(config, shapes, micro_batches(config, ranks)[0], device.type)
    memory = state_memory(shapes, ranks, sharded, config.telemetry.enabled, working)
    models = 1 if config.body.checkpoint is None else 2  # the new one, and the one that its body comes from
    loading = models * FLOAT32 * shapes.parameters
    return Need(shapes.parameters, memory, free_memory(device), loading, free_memory(torch.device("cpu")))


def _size(size: int) -> str:
    return f"{size / GIB:,.1f} GiB" if size >= GIB else f"{size >> 20} MiB"


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take: of its GPU, or its share of the machine's memory and of its group's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    room = [psutil.virtual_memory().available, *group_room(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]
    return min(room) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def group_room(membership: Path, root: Path) -> list[int]:
    """Bytes left below each memory limit of this process's control groups (containers, SLURM jobs), of version 1 or 2."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return []
    rooms = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            top, limit, used, prefix = root, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            # Of a group alone, its statistics without the prefix; the usage is that of its children too.
            top, limit, used, prefix = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        else:
            continue
        group = top / path.lstrip("/")
        for place in (group, *group.parents):
            if not place.is_relative_to(top):
                break
            if (most := _number(place / limit)) is not None:
                # Pages of files that were read count as used, and give way to whoever asks for memory.
                files = _statistics(place / "memory.stat", {f"{prefix}active_file", f"{prefix}inactive_file"})
                rooms.append(max(0, most - max(0, (_number(place / used) or 0) - files)))
    return rooms


def _number(path: Path) -> int | None:
    """The number in a control group's file; None where there is no such file or no limit ("max")."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _statistics(path: Path, names: set[str]) -> int:
    """The sum of some of a control group's statistics."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(int(value) for name, _, value in (line.partition(" ") for line in lines) if name in names)

"""What a run costs by a stated model: operations, memory and communication of a rank, checkpoint and metrics.

Everything follows from the parameters of the real model and from what the code does with them:

- parameters, gradients and both moments of AdamW are float32, whatever ``train.precision`` is: under bf16 and fp16 the float32
  parameters are themselves the master weights, and autocast makes copies of them for the matrix products;
- telemetry holds a second copy of the parameters, to measure the update;
- DDP holds gradients a second time, in the buckets that it reduces (gradient_as_bucket_view is off, PyTorch's default);
- FSDP2 deals every parameter's first axis out to the ranks; of some it gathers the whole, and it sums their gradients over the
  ranks in every micro-batch;
- activations and what the head works with are counted by running the model on fake tensors (benchmarks/simulate.py).

Collectives are taken as rings, the least that a rank must send: (W - 1) / W of the data for a gather or a scatter, twice that for
a reduction to all. Shapes: W ranks, V vocabulary, D width, T positions, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from configs.schema import RunConfig
from model import blocks

from .simulate import MicroBatch, micro_batch, skeleton

FLOAT32 = 4
OVERHEAD_PER_TENSOR = 256
"""Most bytes of a safetensors file beside a tensor's values: its entry in the header, and alignment."""
GATHERED_BLOCKS = 2
"""Blocks that FSDP2 holds whole at once: the one at work and the one being gathered, or whose gradient is being reduced."""


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


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank sends in one step."""

    parameters: float
    """Gathered by FSDP2, in each micro-batch."""
    gradients: float
    """Averaged over ranks: once by DDP, in each micro-batch by FSDP2."""
    other: float
    """Norms of the output embedding's rows, which FSDP2 gathers; buffers, which DDP sends."""

    @property
    def total(self) -> float:
        """The sum."""
        return self.parameters + self.gradients + self.other


class Costs:
    """The costs of one run's configuration. Raises InputError for a body that cannot be built."""

    def __init__(self, config: RunConfig, vocabulary: int) -> None:
        self.config, self.vocabulary = config, vocabulary
        self.shapes = shapes_of(skeleton(config, vocabulary), config.data.sequence_length)
        self._working: dict[tuple[int, bool], MicroBatch] = {}

    def split(self, ranks: int) -> tuple[int, int]:
        """Sequences of one micro-batch of a rank, and how many micro-batches a step has."""
        share = self.config.train.batch_size // ranks
        rows = min(share, self.config.train.micro_batch_size or share)
        return rows, math.ceil(share / rows) if rows else 0

    def working(self, sequences: int, sharded: bool) -> MicroBatch:
        """What a micro-batch of so many sequences works with."""
        key = (sequences, sharded and self.config.train.precision != "fp32")
        if key not in self._working:
            self._working[key] = micro_batch(self.config, self.vocabulary, sequences, sharded=key[1])
        return self._working[key]

    def memory(self, ranks: int, sharded: bool) -> Memory:
        """Of one rank of ``ranks``; ``sharded``: FSDP2 instead of DDP."""
        shapes, (sequences, _) = self.shapes, self.split(ranks)
        held = FLOAT32 * (shapes.shard(ranks) if sharded else shapes.parameters)
        whole = GATHERED_BLOCKS * shapes.largest_block + count(shapes.rest)
        return Memory(
            weights=held,
            gradients=held,
            moments=2 * held + FLOAT32 * len(shapes.all),  # each parameter counts its steps
            telemetry=held if self.config.telemetry.enabled else 0,
            buckets=held if ranks > 1 and not sharded else 0,
            gathered=2 * FLOAT32 * whole if sharded else 0,
            working=self.working(sequences, sharded).peak,
        )

    def traffic(self, ranks: int, sharded: bool) -> Traffic:
        """Of one rank of ``ranks`` in a step; ``sharded``: FSDP2 instead of DDP."""
        shapes, (_, parts), share = self.shapes, self.split(ranks), (ranks - 1) / ranks
        if not sharded:
            # Rank 0 sends buffers along a tree of the ranks; each passes them on at most once.
            return Traffic(0.0, 2 * share * FLOAT32 * shapes.parameters, parts * share * shapes.buffers)
        # Blocks are gathered for the forward pass and again for the backward pass.
        gathered = FLOAT32 * (2 * shapes.parameters - shapes.staying)
        norms = FLOAT32 * shapes.vocabulary[0] if self.config.telemetry.enabled else 0
        return Traffic(parts * share * gathered, parts * share * FLOAT32 * shapes.parameters, share * norms)

    @property
    def checkpoint_bytes(self) -> int:
        """The tensors of a checkpoint: weights, both moments, and each parameter's count of steps."""
        return 3 * FLOAT32 * self.shapes.parameters + FLOAT32 * len(self.shapes.all)

    @property
    def checkpoint_overhead(self) -> int:
        """The most that the files of these tensors are larger; the tokenizer and the model's code come beside."""
        return OVERHEAD_PER_TENSOR * 4 * len(self.shapes.all)

"""What a run costs by a stated model: operations, memory and communication of a rank, checkpoint and metrics.

Everything follows from the parameters of the real model and from what the code does with them. What a rank holds is in
training/memory.py, but that activations, and what the head works with, are counted here by running the model on fake tensors
(benchmarks/simulate.py). FSDP2 sums gradients over the ranks in every micro-batch.

Collectives are taken as rings, the least that a rank must send: (W - 1) / W of the data for a gather or a scatter, twice that for
a reduction to all. Shapes: W ranks, V vocabulary, D width, T positions, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from configs.schema import RunConfig
from training.memory import FLOAT32, Memory, micro_batches, shapes_of, skeleton, state_memory

from .simulate import MicroBatch, micro_batch

OVERHEAD_PER_TENSOR = 256
"""Most bytes of a safetensors file beside a tensor's values: its entry in the header, and alignment."""


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
        return micro_batches(self.config, ranks)

    def working(self, sequences: int, sharded: bool) -> MicroBatch:
        """What a micro-batch of so many sequences works with."""
        key = (sequences, sharded and self.config.train.precision != "fp32")
        if key not in self._working:
            self._working[key] = micro_batch(self.config, self.vocabulary, sequences, sharded=key[1])
        return self._working[key]

    def memory(self, ranks: int, sharded: bool) -> Memory:
        """Of one rank of ``ranks``; ``sharded``: FSDP2 instead of DDP."""
        working = self.working(self.split(ranks)[0], sharded).peak
        return state_memory(self.shapes, ranks, sharded, self.config.telemetry.enabled, working)

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

"""The cost of a run by a model: operations, memory and communication of a rank, checkpoint and metrics.

Everything follows from the parameters of the real model and from what the code does with them. training/memory.py has what a
rank holds; activations and the head's buffers are counted by running the model on fake tensors (benchmarks/simulate.py).

Collectives are taken as rings, the least that a rank must send: (W - 1) / W of the data for a gather or a scatter, twice that for
an all-reduce. Shapes: W ranks, V vocabulary, D width, T positions, L layers.
"""

from __future__ import annotations

from typing import NamedTuple

from configs.schema import RunConfig
from training.memory import FLOAT32, Memory, micro_batches, shapes_of, skeleton, state_memory

from .simulate import MicroBatch, micro_batch


class Traffic(NamedTuple):
    """Bytes that one rank sends in one step."""

    parameters: float
    """Gathered by FSDP2, in each micro-batch."""
    gradients: float
    """Averaged over ranks: once by DDP, in each micro-batch by FSDP2."""
    other: float
    """Norms of the output embedding's rows, which FSDP2 gathers; buffers, which DDP broadcasts."""


class Costs:
    """The costs of one run's configuration. Raises InputError for a body that cannot be built."""

    def __init__(self, config: RunConfig, vocabulary: int) -> None:
        self.config, self.vocabulary = config, vocabulary
        self.shapes = shapes_of(skeleton(config, vocabulary), config.data.sequence_length)
        self._simulated: dict[tuple[int, bool], MicroBatch] = {}

    def memory(self, ranks: int, sharded: bool) -> Memory:
        """Memory of one rank of ``ranks``; ``sharded``: FSDP2 instead of DDP."""
        key = (micro_batches(self.config, ranks)[0], sharded and self.config.train.precision != "fp32")
        if key not in self._simulated:
            self._simulated[key] = micro_batch(self.config, self.vocabulary, key[0], sharded=key[1])
        return state_memory(
            self.shapes, ranks, sharded, self.config.telemetry.measures("updates"), self._simulated[key].peak
        )

    def traffic(self, ranks: int, sharded: bool) -> Traffic:
        """What one rank of ``ranks`` sends in a step; ``sharded``: FSDP2 instead of DDP."""
        shapes, (_, parts), share = self.shapes, micro_batches(self.config, ranks), (ranks - 1) / ranks
        if not sharded:
            # Rank 0 broadcasts buffers along a tree, in which each rank passes them on at most once.
            return Traffic(0.0, 2 * share * FLOAT32 * shapes.parameters, parts * share * shapes.buffers)
        # Blocks are gathered for the forward pass and again for the backward pass.
        gathered = FLOAT32 * (2 * shapes.parameters - shapes.staying)
        norms = FLOAT32 * shapes.vocabulary[0] if self.config.telemetry.measures("norms") else 0
        return Traffic(parts * share * gathered, parts * share * FLOAT32 * shapes.parameters, share * norms)

    @property
    def checkpoint_bytes(self) -> int:
        """The tensors of a checkpoint: weights, both moments, and each parameter's step count."""
        return 3 * FLOAT32 * self.shapes.parameters + FLOAT32 * len(self.shapes.all)

    def shard_bytes(self, ranks: int) -> int:
        """Of those, what the first of ``ranks`` writes under FSDP2, which has the most: its copy is what training waits for."""
        return 3 * FLOAT32 * self.shapes.shard(ranks) + FLOAT32 * len(self.shapes.all)

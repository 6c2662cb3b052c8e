"""The cost of a run by a model: operations, memory, communication and files of a rank.

Everything follows from the parameters of the real model and from what the code does with them. training/memory.py has what a
rank holds; activations and the head's buffers are counted by running the model on fake tensors (benchmarks/simulate.py).

Collectives are taken as rings, the least that a rank must send: (W - 1) / W of the data for a gather or a scatter, twice that for
an all-reduce. Shapes: W ranks, V vocabulary, D width, T positions, L layers.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from configs.schema import RunConfig
from model import blocks, final_norm
from optim.optimizers import make_optimizer
from record.checkpoints import MODEL, OPTIMIZER
from training.memory import FLOAT32, Memory, count, micro_batches, shapes_of, skeleton, staged, state_memory

from .simulate import MicroBatch, micro_batch

FIRST_BUCKET, BUCKET = 1 << 20, 25 << 20
"""Bytes at which DDP closes its first bucket of gradients, and every other one."""


class Traffic(NamedTuple):
    """Bytes that one rank sends in one step."""

    parameters: float
    """Gathered by FSDP2, in each micro-batch."""
    gradients: float
    """Averaged over ranks: once by DDP, in each micro-batch by FSDP2."""
    other: float
    """Norms of the output embedding's rows, which FSDP2 gathers; buffers, which DDP broadcasts."""


class Collectives(NamedTuple):
    """Calls in which all ranks take part in one step, the first one apart: one that neither probes the attention nor measures
    the edge, of a run without interventions, stresses and buffers."""

    parameters: int
    """Groups that FSDP2 gathers."""
    gradients: int
    """Groups whose gradients FSDP2 scatters, or DDP's buckets."""
    metrics: int
    """Of a few numbers, or a few per row of the vocabulary: targets, losses, norms, whether all is finite, statistics."""
    vote: int
    """Whether to stop, on the CPU; nothing waits for it before the end of the next step."""


class Costs:
    """The costs of one run's configuration. Raises InputError for a body that cannot be built."""

    def __init__(self, config: RunConfig, vocabulary: int) -> None:
        self.config, self.vocabulary = config, vocabulary
        model = skeleton(config, vocabulary)
        self.names = {name: tuple(p.shape) for name, p in model.named_parameters()}
        self.shapes = shapes_of(model, config.data.sequence_length)
        grouped = (*blocks(model.model), final_norm(model.model), model.lm_head, model.get_input_embeddings())
        inside = {id(parameter) for module in grouped for parameter in module.parameters()}
        self.left_over = any(id(parameter) not in inside for parameter in model.parameters())
        """Whether there are parameters, as of positions, that FSDP2 has in a group by themselves."""
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

    def operations(self, ranks: int) -> float:
        """FLOPs of one rank of ``ranks`` in a step: as PaLM counts them, and the blocks' forward pass once more with
        checkpointing."""
        shapes, train = self.shapes, self.config.train
        token = float(shapes.flops_per_token())
        if train.gradient_checkpointing:
            token += (token - 6 * shapes.vocabulary[0] * shapes.vocabulary[1]) / 3
        return token * train.batch_size * shapes.length / ranks

    def collectives(self, ranks: int, sharded: bool) -> Collectives:
        """What all of ``ranks`` call in a step; ``sharded``: FSDP2 instead of DDP."""
        config, (_, parts) = self.config, micro_batches(self.config, ranks)
        measured, accumulated = config.telemetry.measured, config.telemetry.enabled and parts > 1
        metrics = 3 + accumulated  # targets, losses, whether all is finite; the first micro-batch's gradient
        metrics += 2 * bool(measured) + ("logits" in measured and config.objective.kind == "tfsd")
        if not sharded:
            return Collectives(0, self._buckets(), metrics, 1)
        # Norms of shards: gradients, parameters, each of Adam's moments, rows of the embedding, updates.
        metrics += 2 + len(make_optimizer(config.optimizer).moments) + ("norms" in measured) + ("updates" in measured)
        twice = len(self.shapes.blocks) + (self.shapes.input_embedding is not None)
        once = 1 + self.left_over  # the final normalisation with the head; they stay for the backward pass
        return Collectives(parts * (2 * twice + once), parts * (twice + once), metrics + accumulated, 1)

    def _buckets(self) -> int:
        """DDP's buckets: gradients in the order in which they come, from the last block to the embeddings."""
        number, size = 0, 0
        for shape in [shape for block in reversed(self.shapes.blocks) for shape in reversed(block)] + self.shapes.rest:
            size += FLOAT32 * count([shape])
            if size >= (BUCKET if number else FIRST_BUCKET):
                number, size = number + 1, 0
        return number + (size > 0)

    @property
    def checkpoint_bytes(self) -> int:
        """The tensors of a checkpoint: weights, both moments, and each parameter's step count."""
        return 3 * FLOAT32 * self.shapes.parameters + FLOAT32 * len(self.shapes.all)

    def shard_bytes(self, ranks: int) -> int:
        """Of those, what the first of ``ranks`` writes under FSDP2, which has the most: its copy is what training waits for."""
        return staged(self.shapes, ranks)

    def index_bytes(self, ranks: int) -> int:
        """shards.json of ``ranks``: which rows of which tensor are in which shard, read by every rank of a resumed run."""
        moments = make_optimizer(self.config.optimizer).moments
        index: dict[str, Any] = {}
        for name, shape in self.names.items():
            rows = -(-shape[0] // ranks)
            parts = [[n, n * rows, min(rows, shape[0] - n * rows)] for n in range(ranks) if n * rows < shape[0]]
            one = {"shape": [*shape], "parts": parts}
            index |= {f"{MODEL}{name}": one} | {f"{OPTIMIZER}{name}.{moment}": one for moment in moments}
            index[f"{OPTIMIZER}{name}.step"] = {"shape": [], "parts": [[0, 0]]}
        return len(json.dumps({"tensors": index})) + 1

    def resume_bytes(self, ranks: int, sharded: bool) -> int:
        """Read by all of ``ranks`` together to resume: rank 0 checks all files; then every rank reads all weights, and all
        moments (DDP) or its own (FSDP2)."""
        weights = FLOAT32 * self.shapes.parameters
        moments = self.checkpoint_bytes - weights
        return self.checkpoint_bytes + ranks * weights + (moments if sharded else ranks * moments)

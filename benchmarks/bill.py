"""What a step, a checkpoint and a start cost one rank, in seconds at stated rates: two of the tables of docs/scale.md.

Nothing overlaps in these sums: a rank computes, then sends, then waits for the latency of its collectives. So they say which of
the three comes to dominate, and how long a step takes at most at these rates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from training.memory import FLOAT32, GIB, staged

from .cost_model import Costs

DEVICE = 0.9 * 80 * GIB
"""Memory of a GPU of 80 GB, less what its driver, NCCL and the allocator take."""
FLOPS = 400e12
"""Operations of a rank in a second."""
LINK = 50e9
"""Bytes that a rank sends in a second."""
DISK = 1e9
"""Bytes that the file system takes or gives in a second, to all ranks together."""
HOP = 30e-6
"""Seconds of a collective, however small, for each doubling of the ranks."""
STEP = [
    "memory GB",
    "TFLOP",
    "computing s",
    "sent GB",
    "sending s",
    "calls",
    "latency s",
    "not computing",
    "run, hours",
]
STORED = ["built GB", "copied GB", "all written s", "of the steps between", "index MB", "read to resume GB"]

Rows = Iterator[list[str]]


def digits(number: float, unit: float = 1.0) -> str:
    """Three significant digits, or a whole number from 100 on; a dash for nothing."""
    number /= unit
    return "-" if not number else f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def step_seconds(cost: Costs, ranks: int, sharded: bool) -> tuple[float, float, float]:
    """Seconds of computing, sending and latency in a step of one rank of ``ranks``."""
    calls = sum(cost.collectives(ranks, sharded)[:3]) if ranks > 1 else 0  # nothing waits for the vote
    sent = sum(cost.traffic(ranks, sharded))
    return cost.operations(ranks) / FLOPS, sent / LINK, HOP * calls * math.log2(ranks)


def steps(costs: Mapping[str, Costs], ranks: Sequence[int]) -> Rows:
    """What a step costs a rank, for each launch that can be."""
    for name, cost, number, sharded, begins in _launches(costs, ranks):
        if begins is None:
            yield _refused(name, cost, number, len(STEP))
            continue
        memory = cost.memory(number, sharded).total
        if memory > DEVICE:
            yield [*begins, digits(memory, 1e9), "does not fit 80 GB", *[""] * (len(STEP) - 2)]
            continue
        computing, sending, latency = step_seconds(cost, number, sharded)
        sent, calls = sum(cost.traffic(number, sharded)), sum(cost.collectives(number, sharded)) if number > 1 else 0
        cells = [digits(memory, 1e9), digits(cost.operations(number), 1e12), digits(computing), digits(sent, 1e9)]
        seconds = computing + sending + latency
        hours = cost.config.train.steps * seconds / 3600
        cells += [digits(sending), digits(calls), digits(latency), f"{1 - computing / seconds:.0%}", digits(hours)]
        yield [*begins, *cells]


def stored(costs: Mapping[str, Costs], ranks: Sequence[int]) -> Rows:
    """What a checkpoint and a start cost: main memory in which a rank builds the model, and to which it copies what it writes;
    seconds of the file system until all of it is written, also in parts of the steps between two checkpoints; bytes that all
    ranks read."""
    for name, cost, number, sharded, begins in _launches(costs, ranks):
        if begins is None:
            yield _refused(name, cost, number, len(STORED))
            continue
        if cost.memory(number, sharded).total > DEVICE:
            continue
        # Without shards the main process gathers all of it, and writes it.
        copied = staged(cost.shapes, number) if sharded else cost.checkpoint_bytes
        written = cost.checkpoint_bytes / DISK
        between = cost.config.checkpoint.every * sum(step_seconds(cost, number, sharded))
        cells = [digits(FLOAT32 * cost.shapes.parameters, 1e9), digits(copied, 1e9), digits(written)]
        index = digits(cost.index_bytes(number), 1e6) if sharded else "-"
        yield [*begins, *cells, f"{written / between:.1%}", index, digits(cost.resume_bytes(number, sharded), 1e9)]


def _launches(
    costs: Mapping[str, Costs], ranks: Sequence[int]
) -> Iterator[tuple[str, Costs, int, bool, list[str] | None]]:
    """Every run on every number of ranks, with DDP and with FSDP2, and the first cells of its row; None instead of them, once,
    where its sequences do not divide over the ranks."""
    for name, cost in costs.items():
        for number in ranks:
            if cost.config.train.batch_size % number:
                yield name, cost, number, False, None
                continue
            for sharded in (False, True) if number > 1 else (False,):
                yield name, cost, number, sharded, [name, f"{number:,}", "FSDP2" if sharded else "DDP"]


def _refused(name: str, cost: Costs, ranks: int, columns: int) -> list[str]:
    """A row that says what to change."""
    sequences = cost.config.train.batch_size
    mend = math.ceil(sequences / ranks) * ranks
    why = f"{sequences:,} sequences do not divide over {ranks:,} ranks: train.batch_size={mend}"
    return [name, f"{ranks:,}", "", why, *[""] * (columns - 1)]

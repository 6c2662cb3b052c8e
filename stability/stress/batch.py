"""Faults planted on purpose: pure functions of the configuration, the seed and the step, so that a replay meets them too.

Shapes: R rows of this rank, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from common.seeds import stream_seed
from configs.schema import CorruptSequences, StressConfig
from data.batches import IGNORED

from .base import acts


def corrupt(
    x_RT: Tensor,
    y_RT: Tensor,
    faults: Sequence[StressConfig],
    batch: int,
    *,
    seed: int,
    vocab_size: int,
    first_row: int,
) -> None:
    """Write the faults of ``batch`` into its rows, in place. ``first_row``: place of this rank's first row in the batch."""
    for number, fault in enumerate(faults):
        if not isinstance(fault, CorruptSequences) or not acts(fault, batch):
            continue
        rows, length = min(fault.sequences - first_row, len(x_RT)), x_RT.shape[1] + 1
        if fault.pattern == "ignored":
            y_RT[: max(0, rows)] = IGNORED
            continue
        for row in range(rows):
            generator = np.random.default_rng(stream_seed(seed, "stress", number, batch, first_row + row))
            drawn = generator.integers(vocab_size, size=length if fault.pattern == "random" else fault.period)
            window = torch.from_numpy(np.resize(drawn, length))
            x_RT[row], y_RT[row] = window[:-1], window[1:]

"""The rows of the output embedding that are tokens, without the vocabulary's padding, whole or sharded.

Shapes: V padded vocabulary, R rows of it on this rank that are tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from model.heads import Head
from ranks.collectives import all_reduce


class OutputRows:
    """The tokens' rows of a head's ``weight``. All ranks build it and ask for the mean together."""

    def __init__(self, head: Head) -> None:
        weight = head.weight
        self.weight, self.rows, self.count = weight, head.n_classes, float(head.n_classes)
        self.sharded = isinstance(weight, DTensor)
        if isinstance(weight, DTensor):
            # A shard is a run of rows, and padding comes last: those that are tokens are its first ones.
            is_token_V = (torch.arange(len(weight), device=weight.device) < head.n_classes).float()
            shard = distribute_tensor(is_token_V, weight.device_mesh, weight.placements).to_local().sum()
            self.rows = int(shard)
            all_reduce(shard, "sum")
            self.count = float(shard)  # more than there are, if shards are replicated; so is their sum
        self.device = weight.device

    def of(self, tensor: Tensor) -> Tensor:
        """The rows (R, D) of the weight, or of its gradient, that this rank holds: a view."""
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        return local.detach()[: self.rows]

    def mean(self) -> Tensor:
        """The mean row (D,) over all ranks, in at least float32."""
        rows_RD = self.of(self.weight)
        total_D = rows_RD.sum(0, dtype=torch.promote_types(rows_RD.dtype, torch.float32))
        if self.sharded:
            all_reduce(total_D, "sum")
        return total_D / self.count

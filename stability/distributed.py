"""Collectives that do nothing on one rank."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of ranks, 1 outside distributed runs."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce(values: Tensor, operation: str) -> None:
    """ "sum" or "max" over ranks, in place. All ranks call it."""
    if world_size() > 1:
        dist.all_reduce(values, op=dist.ReduceOp.SUM if operation == "sum" else dist.ReduceOp.MAX)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is set on any rank; waits for the device. All ranks call it."""
    value = torch.tensor(float(flag), device=device)
    all_reduce(value, "max")
    return bool(value.item())

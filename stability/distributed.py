"""Collectives that do nothing on one rank."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from configs.errors import InputError


def world_size() -> int:
    """Number of ranks, 1 outside distributed runs."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank, 0 outside distributed runs."""
    return dist.get_rank() if world_size() > 1 else 0


def all_reduce(values: Tensor, operation: str) -> None:
    """ "sum" or "max" over ranks, in place. All ranks call it."""
    if world_size() > 1:
        dist.all_reduce(values, op=dist.ReduceOp.SUM if operation == "sum" else dist.ReduceOp.MAX)


def from_main(find: Callable[[], Any], device: torch.device) -> Any:
    """What ``find`` returns on the main process, on all ranks: anything that JSON holds. All ranks call it.

    What the main process raises is told there; the other ranks raise an :class:`InputError` without a line.
    """
    if world_size() == 1:
        return find()
    told = {"found": None, "failed": True}
    try:
        if rank() == 0:
            told = {"found": find(), "failed": False}
    finally:  # the others learn of a failure before it ends the main process
        told = _broadcast(told, device)
    if told["failed"]:
        raise InputError()
    return told["found"]


def _broadcast(value: Any, device: torch.device) -> Any:
    """The main process's ``value``, as JSON."""
    text = json.dumps(value).encode()
    size = torch.tensor([len(text)], device=device)
    dist.broadcast(size, src=0)
    data = torch.zeros(int(size), dtype=torch.uint8, device=device)
    if rank() == 0:
        data.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
    dist.broadcast(data, src=0)
    return json.loads(bytes(data.tolist()))

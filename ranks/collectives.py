"""Collectives that do nothing on one rank."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from common.errors import InputError


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


@contextlib.contextmanager
def only_looking(model: nn.Module) -> Iterator[None]:
    """Forward passes that leave no trace in ``model``: no gradients, and what they gathered of sharded parameters is let go.

    FSDP2 keeps its last groups gathered after a forward pass because a backward pass should follow: until then the model's
    parameters are not those that the optimizer holds. All ranks call it.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if sharded:
        for buffer in model.buffers():  # running statistics: DDP has those of rank 0 everywhere
            dist.broadcast(buffer, src=0)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train()
        for module in sharded:
            module.reshard()


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

"""Collectives that do nothing on a single rank."""

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
    """Reduce ``values`` over ranks in place; ``operation`` is sum or max. All ranks call it."""
    if world_size() > 1:
        dist.all_reduce(values, op=dist.ReduceOp.SUM if operation == "sum" else dist.ReduceOp.MAX)


@contextlib.contextmanager
def only_looking(model: nn.Module) -> Iterator[None]:
    """Run forward passes that leave no trace in ``model``: no gradients, and gathered parameters are resharded afterwards.

    After a forward pass FSDP2 keeps its last groups gathered for the backward pass that normally follows; until then the
    model's parameters are not those the optimizer holds. All ranks call it.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if sharded:
        for buffer in model.buffers():  # running statistics: under DDP all ranks have those of rank 0
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
    """Call ``find`` on the main process and return its (JSON) result on all ranks. All ranks call it. If ``find`` raises,
    the main process raises that error, and the others an :class:`InputError` without a message."""
    if world_size() == 1:
        return find()
    answer = {"found": None, "failed": True}
    try:
        if rank() == 0:
            answer = {"found": find(), "failed": False}
    finally:  # the others learn of a failure before it ends the main process
        answer = from_rank(0, lambda: answer, device)
    if answer["failed"]:
        raise InputError()
    return answer["found"]


def from_rank(source: int, find: Callable[[], Any], device: torch.device) -> Any:
    """The (JSON) result of ``find`` on one rank, on all of them: what comes over the network is never unpickled. All ranks call
    it; ``find`` must not raise."""
    if world_size() == 1:
        return find()
    text = json.dumps(find()).encode() if rank() == source else b""
    size = torch.tensor([len(text)], device=device)
    dist.broadcast(size, src=source)
    data = torch.zeros(int(size), dtype=torch.uint8, device=device)
    if rank() == source:
        data.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
    dist.broadcast(data, src=source)
    return json.loads(bytes(data.tolist()))

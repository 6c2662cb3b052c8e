"""The state that Adam keeps of each parameter, for interventions that read or change it, and shards of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from common.errors import InputError

MOMENTS = ("exp_avg", "exp_avg_sq")


def refuse_without_moments(kind: str, optimizer: Optimizer) -> None:
    """Raise InputError if the optimizer is not Adam, AdamW or a subclass."""
    if not isinstance(optimizer, torch.optim.Adam):
        raise InputError(
            f"interventions: {kind} works on Adam's moments, which {type(optimizer).__name__} does not have; "
            "set optimizer.kind=adamw"
        )


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a possibly sharded tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def forget(optimizer: Optimizer, parameters: Sequence[Tensor], when: Tensor | None = None) -> None:
    """Set both moments to zero; Adam's count of steps goes on. ``when``: () boolean; None: always."""
    for parameter in parameters:
        state = optimizer.state.get(parameter, {})
        for moment in (local(state[name]) for name in MOMENTS if name in state):
            if when is None:
                moment.zero_()
            else:
                moment.masked_fill_(when, 0.0)


def with_state(optimizer: Optimizer, parameters: Sequence[Tensor]) -> Iterator[tuple[int, Tensor, dict[str, Tensor]]]:
    """Index, parameter and state of the parameters that have both a gradient and a state."""
    for index, parameter in enumerate(parameters):
        state = optimizer.state.get(parameter)
        if parameter.grad is not None and state:
            yield index, parameter, state

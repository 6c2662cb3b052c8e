"""Which kernel evaluates a run's loss: decided before the first step, and recorded."""

from typing import Any

import torch

from common.errors import InputError
from configs.schema import RunConfig
from model.heads import Head
from model.kernel_choice import choose_kernel
from ranks.collectives import all_reduce
from ranks.launch import COMPUTE_DTYPES


def check_loss_kernel(config: RunConfig, head: Head) -> dict[str, Any]:
    """What evaluates the loss on this rank, and why it is not the Triton kernel on a GPU; for environment.json.

    All ranks call it. Raises InputError on all of them if the configuration requires the Triton kernel and one cannot use it.
    """
    # Not the accelerator's device: a single process's has no index, so that the kernel would be checked twice.
    device, dtype = head.weight.device, COMPUTE_DTYPES.get(config.train.precision, torch.float32)
    name, reason = "torch", None
    try:
        choice = choose_kernel(config.train.kernel, device, head.n_classes, dtype)
        name, reason = choice.name, choice.reason
    except RuntimeError as error:
        reason = str(error)
    without = torch.tensor(int(reason is not None), device=device)
    all_reduce(without, "sum")
    ranks_without = int(without)
    if ranks_without and config.train.kernel == "triton":
        raise InputError(f"train.kernel: triton: {reason or 'another rank cannot use it'}; use auto or torch")
    return {"name": name, "reason": reason, "ranks_without_triton": ranks_without}

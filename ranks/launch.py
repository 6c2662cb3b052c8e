"""Starting Accelerate, and refusing launches that would not do what they look like."""

from __future__ import annotations

import os
from datetime import timedelta

import accelerate
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from common.errors import InputError, note

from .launch_variables import check_launch_variables

COMPUTE_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""The dtype of matrix products by Accelerate's mixed_precision; parameters are float32 everywhere."""


def start_accelerator(precision: str, *, batch_size: int, stall_seconds: float) -> accelerate.Accelerator:
    """Accelerate for this launch: the processes that were started are the ones that work together.

    Raises InputError for what :mod:`ranks.launch_variables` refuses, for a launch whose ranks do not see each other or that
    shards in a way that is not this project's, for a device that cannot be used, and for fp16 on a CPU.
    """
    check_launch_variables()
    try:
        accelerator = accelerate.Accelerator(
            mixed_precision="no" if precision == "fp32" else precision,
            # Connections outlast the watchdog, which knows whom to name.
            kwargs_handlers=[accelerate.InitProcessGroupKwargs(timeout=connection_timeout(stall_seconds))],
        )
        torch.zeros((), device=accelerator.device)
    except dist.DistError as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise InputError(f"launch: the processes cannot meet at MASTER_ADDR:MASTER_PORT={where}: {error}") from None
    except (RuntimeError, AssertionError) as error:  # torch's, for a device that it or the machine does not have
        device = os.environ.get("ACCELERATE_TORCH_DEVICE")
        if device is None:
            raise
        raise InputError(f"launch: ACCELERATE_TORCH_DEVICE={device} cannot be used here: {error}; unset it") from None
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise InputError(
            f"launch: {started} processes were started but Accelerate works with {accelerator.num_processes}; "
            "on CPU set ACCELERATE_USE_CPU=1 as configs/launch/cpu_2proc.yaml says"
        )
    _shard(accelerator)
    if batch_size % started:
        raise InputError(f"train.batch_size: {batch_size} sequences do not divide over {started} processes")
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError("train.precision: fp16 needs a GPU (its gradients must be scaled); use fp32 or bf16 on a CPU")
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", precision) and accelerator.is_main_process:
        note(f"launch: mixed_precision={asked} has no effect; the run's own is train.precision={precision}")
    return accelerator


def connection_timeout(stall_seconds: float) -> timedelta:
    """How long a collective may wait before torch itself ends it."""
    return timedelta(seconds=stall_seconds + 600)


def _shard(accelerator: accelerate.Accelerator) -> None:
    """FSDP2 where the launch asks for it: on CPUs too, and with parameters and gradients in float32 as under DDP."""
    state = accelerator.state
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not asked or state.distributed_type == DistributedType.NO:
        return
    if state.distributed_type == DistributedType.MULTI_CPU:
        if torch.accelerator.is_available():
            raise InputError(
                "launch: FSDP2 on CPUs would put its shards on the GPU that is here; set CUDA_VISIBLE_DEVICES="
            )
        # Accelerate leaves CPUs out of the launches that it shards; all that it does for the others works for them.
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    if not accelerator.is_fsdp2:
        raise InputError("launch: sharding needs FSDP2; set fsdp_version: 2 in the launch file, or FSDP_VERSION=2")
    # Accelerate's policy would have norms, residual stream, loss and sums of gradients in the compute dtype. Autocast is to
    # mean the same sharded or not: see autocast_sharded().
    state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()


def autocast_sharded(accelerator: accelerate.Accelerator, model: nn.Module) -> None:
    """Have a model that was prepared sharded compute as Accelerate has every other compute: under autocast, if any."""
    if accelerator.is_fsdp2 and accelerator.mixed_precision in COMPUTE_DTYPES:
        dtype = COMPUTE_DTYPES[accelerator.mixed_precision]
        # Without autocast's cache, which would keep a copy of each gathered parameter until the end of the forward pass.
        autocast = torch.autocast(accelerator.device.type, dtype, cache_enabled=False)
        model.forward = autocast(model.forward)

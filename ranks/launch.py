"""Start Accelerate, and refuse launches that would not do what they appear to."""

import os
import resource
from datetime import timedelta

import accelerate
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from common.allocation import keep_freed_memory
from common.errors import InputError, note

from .launch_variables import check_launch_variables

COMPUTE_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Dtype of matrix products by Accelerate's mixed_precision; parameters are always float32."""
OWN_FILES, FILES_PER_RANK = 256, 4
"""Files that a rank has open for itself, and connections of the first rank to each other one: torch's store, the watchdog's, the
vote, and gloo or NCCL."""


def start_accelerator(precision: str, *, batch_size: int, stall_seconds: float) -> accelerate.Accelerator:
    """Create the Accelerator for this launch. Raises InputError for launch variables that :mod:`ranks.launch_variables`
    refuses, too few open files, ranks that do not find each other, unsupported sharding, a device that cannot be used, and
    fp16 on a CPU."""
    check_launch_variables()
    keep_freed_memory()
    started = int(os.environ.get("WORLD_SIZE", "1"))
    allow_files(started)
    try:
        accelerator = accelerate.Accelerator(
            mixed_precision="no" if precision == "fp32" else precision,
            # Longer than the watchdog, which can name the missing rank.
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
    requested = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if requested not in ("no", precision) and accelerator.is_main_process:
        note(f"launch: mixed_precision={requested} has no effect; the run's own is train.precision={precision}")
    return accelerator


def allow_files(ranks: int) -> None:
    """Raise this process's limit of open files to what so many ranks need. Raises InputError if it may not: the processes would
    end with errors of the network, or wait for each other."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = OWN_FILES + FILES_PER_RANK * ranks
    if ranks == 1 or soft >= needed or soft == resource.RLIM_INFINITY:
        return
    if hard < needed and hard != resource.RLIM_INFINITY:
        raise InputError(
            f"launch: {ranks} processes need {needed} open files each, and {hard} are allowed; raise that (ulimit -Hn)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def connection_timeout(stall_seconds: float) -> timedelta:
    """Time after which torch itself aborts a collective."""
    return timedelta(seconds=stall_seconds + 600)


def _shard(accelerator: accelerate.Accelerator) -> None:
    """Set up FSDP2 if the launch requests it: on CPUs too, with parameters and gradients in float32 as under DDP."""
    state = accelerator.state
    requested = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not requested or state.distributed_type == DistributedType.NO:
        return
    if state.distributed_type == DistributedType.MULTI_CPU:
        if torch.accelerator.is_available():
            raise InputError(
                "launch: FSDP2 on CPUs would put its shards on the GPU that is here; set CUDA_VISIBLE_DEVICES="
            )
        # Accelerate does not shard on CPUs, but everything it does elsewhere works there too.
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    if not accelerator.is_fsdp2:
        raise InputError("launch: sharding needs FSDP2; set fsdp_version: 2 in the launch file, or FSDP_VERSION=2")
    # Accelerate's policy would put norms, residual stream, loss and gradient sums in the compute dtype; autocast_sharded()
    # makes autocast mean the same with and without sharding.
    state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy()


def autocast_sharded(accelerator: accelerate.Accelerator, model: nn.Module) -> None:
    """Run a sharded model's forward pass under autocast, as Accelerate does for every other model."""
    if accelerator.is_fsdp2 and accelerator.mixed_precision in COMPUTE_DTYPES:
        dtype = COMPUTE_DTYPES[accelerator.mixed_precision]
        # No weight cache: it would keep a copy of each gathered parameter until the end of the forward pass.
        autocast = torch.autocast(accelerator.device.type, dtype, cache_enabled=False)
        model.forward = autocast(model.forward)

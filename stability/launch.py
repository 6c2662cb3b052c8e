"""Starting Accelerate, and refusing launches that would not do what they look like."""

from __future__ import annotations

import os
from datetime import timedelta

import accelerate
from accelerate import tracking

from configs.errors import InputError
from configs.schema import RunConfig


def start_accelerator(config: RunConfig) -> accelerate.Accelerator:
    """Accelerate for this launch: the processes that were started are the ones that work together.

    Raises InputError for trackers that are not installed, for a launch whose ranks do not see each other or that accumulates
    gradients by itself, and for fp16 on a CPU.
    """
    _refuse_missing_trackers(config.trackers)
    accelerator = accelerate.Accelerator(
        mixed_precision="no" if config.train.precision == "fp32" else config.train.precision,
        log_with=list(config.trackers) or None,
        project_dir=config.output_dir,
        # Connections outlast the watchdog, which knows whom to name.
        kwargs_handlers=[accelerate.InitProcessGroupKwargs(timeout=connection_timeout(config.train.stall_seconds))],
    )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise InputError(
            f"launch: {started} processes were started but Accelerate works with {accelerator.num_processes}; "
            "on CPU set ACCELERATE_USE_CPU=1 as configs/launch/cpu_2proc.yaml says"
        )
    if config.train.batch_size % started:
        raise InputError(
            f"train.batch_size: {config.train.batch_size} sequences do not divide over {started} processes"
        )
    if config.train.precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError("train.precision: fp16 needs a GPU (its gradients must be scaled); use fp32 or bf16 on a CPU")
    return accelerator


def connection_timeout(stall_seconds: float) -> timedelta:
    """How long a collective may wait before torch itself ends it."""
    return timedelta(seconds=stall_seconds + 600)


def _refuse_missing_trackers(trackers: list[str]) -> None:
    # Accelerate itself only warns about a tracker that is missing, and the run would go unlogged.
    known = sorted(str(name) for name in tracking.LOGGER_TYPE_TO_CLASS)
    available = [str(name) for name in tracking.get_available_trackers()]
    problems = []
    for tracker in trackers:
        if tracker not in known:
            problems.append(f"trackers: {tracker} is unknown to Accelerate; it knows {', '.join(known)}")
        elif tracker not in available:
            problems.append(f"trackers: {tracker} is not installed; install it or leave it out")
    if problems:
        raise InputError(*problems)

"""The cost of a turn: some steps of one contestant, with the GPU's work included."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Step = Callable[[int], None]
"""Takes the step with this number, from 1."""


@dataclass(frozen=True)
class Cost:
    """The cost of some steps."""

    wall: float
    """Seconds."""
    cpu: float
    """CPU seconds of this process on all its cores, which other processes hardly affect."""
    extra_bytes: int = 0
    """Peak GPU memory above what was allocated before. 0 on a CPU."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall + other.wall, self.cpu + other.cpu, max(self.extra_bytes, other.extra_bytes))


def take_turn(step: Step, numbers: range, device: torch.device) -> Cost:
    """The cost of the steps with these numbers."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    wall, cpu = time.perf_counter(), time.process_time()
    for number in numbers:
        step(number)
    cpu = time.process_time() - cpu  # before the wait for the GPU, which keeps a core busy
    if on_gpu:
        torch.cuda.synchronize(device)
    wall = time.perf_counter() - wall
    return Cost(wall, cpu, torch.cuda.max_memory_allocated(device) - before if on_gpu else 0)


def machine(device: torch.device) -> str:
    """The hardware and the version of torch, in a line."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    processor = platform.processor() or platform.machine()
    return f"{processor}, {torch.get_num_threads()} threads, torch {torch.__version__}"

"""Where the time of a training step goes: kernels of the GPU (on a CPU: operators), by group, and how long the GPU is idle.

    python -m benchmarks.gpu_check.profile_step --lines FILE --seconds S [--device cpu|cuda]

Lines:

    profile         arm, and wall_ms and host_ms of a step without the profiler; then arm, and device_ms (busy, with the
                    profiler), idle (a share), steps (profiled), clock; or error
    profile_group   arm, group, ms, share (of the sum over all kernels), calls: of a step
    profile_kernel  arm, rank, name, group, ms, share, calls: the 15 that take longest

The profiler slows the host down, not the kernels, so the idle time is the step's time without it minus the kernels' with it.
Evaluation, the transfer of rows and the probe of attention are not in these steps.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.paired import FIRST, loop_step, warm_up
from benchmarks.throughput import LINEAR, METRIC
from benchmarks.turns import Step, take_turn
from common.command import ArgumentParser, exit_status

from .devices import clear, device_of, settle
from .kernel_groups import group_of
from .lines import Lines, add_arguments, described, lines_of
from .workload import Workload, prepare, rows_that_fit

TIMED, PROFILED = {"cuda": 10, "cpu": 3}, {"cuda": 4, "cpu": 1}
"""Steps without and with the profiler."""
TOP = 15
LONGEST_NAME = 300
NO_KERNELS = ("Optimizer.", "ProfilerStep", "## ", "Context Sync", "Stream Sync", "Event Sync", "Stream Wait")
"""How names begin of other events that the profiler reports for a GPU."""
START_SECONDS = {"cuda": 10.0, "cpu": 1.0}
"""A guess of what an arm takes."""


@dataclass(frozen=True)
class Spent:
    """A call of a kernel or an operator, in ns."""

    name: str
    start: int
    duration: int


def main() -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(description="Where the time of a training step goes.")
    add_arguments(parser)
    arguments = parser.parse_args()
    lines, device = lines_of(arguments, "profile"), device_of(arguments.device)
    settle()
    with tempfile.TemporaryDirectory() as folder:
        workload = prepare(device, Path(folder))
        measure(lines, workload, {arm: functools.partial(loop, workload, arm) for arm in (LINEAR, METRIC)})


def loop(workload: Workload, arm: str) -> Step:
    """The training loop's step for an arm."""
    return loop_step(workload.run(arm.replace("+", "_"), rows_that_fit(workload), arm))


def measure(lines: Lines, workload: Workload, arms: dict[str, Callable[[], Step]]) -> None:
    """Write the lines of all arms that there is time for. One that fails does not end the others."""
    for arm, build in arms.items():
        if lines.time_left() < START_SECONDS[workload.device.type]:
            lines.left_out(f"profile of {arm}")
            continue
        try:
            measure_arm(lines, arm, build(), workload.device)
        except Exception as error:  # noqa: BLE001 - an arm's failure is a result, whatever it is
            lines.write("profile", arm=arm, error=described(error))
        clear(workload.device)


def measure_arm(lines: Lines, arm: str, step: Step, device: torch.device) -> None:
    """Write the lines of an arm. Raises RuntimeError if the profiler records nothing."""
    warm_up(step, device)
    timed, steps = TIMED[device.type], PROFILED[device.type]
    first, start = FIRST + 1, FIRST + 1 + timed
    cost = take_turn(step, range(first, start), device)
    wall = 1e3 * cost.wall / timed
    lines.write("profile", arm=arm, wall_ms=wall, host_ms=1e3 * cost.cpu / timed)
    spent = profiled(step, range(start, start + steps), device)
    if not spent:
        raise RuntimeError("the profiler recorded no kernels; it may not be allowed to (CUPTI)")
    busy = busy_ns([(one.start, one.start + one.duration) for one in spent]) / (1e6 * steps)
    lines.write(
        "profile",
        **{"arm": arm, "steps": steps, "device_ms": busy},
        idle=max(0.0, 1 - busy / wall) if device.type == "cuda" else None,
        clock="kernels of the GPU" if device.type == "cuda" else "operators on the CPU",
    )
    write_shares(lines, arm, spent, steps)


def write_shares(lines: Lines, arm: str, spent: list[Spent], steps: int) -> None:
    """Write what the groups and the longest kernels took of a step."""
    groups, kernels = totals(spent, lambda one: group_of(one.name), steps), totals(spent, lambda one: one.name, steps)
    for group, figures in groups.items():
        lines.write("profile_group", arm=arm, group=group, **figures)
    for rank, (name, figures) in enumerate(list(kernels.items())[:TOP], 1):
        lines.write("profile_kernel", arm=arm, rank=rank, name=name[:LONGEST_NAME], group=group_of(name), **figures)


def totals(spent: list[Spent], key: Callable[[Spent], str], steps: int) -> dict[str, dict[str, Any]]:
    """Time, share of the total and calls of one of the steps, by key, the longest first."""
    sums: dict[str, list[int]] = {}
    for one in spent:
        entry = sums.setdefault(key(one), [0, 0])
        entry[0] += one.duration
        entry[1] += 1
    total = max(1, sum(duration for duration, _ in sums.values()))
    ordered = sorted(sums.items(), key=lambda item: -item[1][0])
    return {
        name: {"ms": duration / (1e6 * steps), "share": duration / total, "calls": calls / steps}
        for name, (duration, calls) in ordered
    }


def profiled(step: Step, numbers: range, device: torch.device) -> list[Spent]:
    """The kernels of some steps, or on a CPU the operators with the time that they do not spend in others."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities) as recorded:
        take_turn(step, numbers, device)
    if not on_gpu:
        return [
            Spent(event.name, int(1e3 * event.time_range.start), int(1e3 * event.self_cpu_time_total))
            for event in recorded.events() or []
        ]
    assert recorded.profiler is not None
    return [
        Spent(event.name(), event.start_ns(), event.duration_ns())
        for event in recorded.profiler.kineto_results.events()
        if event.device_type() == DeviceType.CUDA and not _is_no_kernel(event)
    ]


def _is_no_kernel(event: Any) -> bool:
    """Whether an event on the GPU is no kernel, but a range around kernels (an optimizer's step) or a wait."""
    marked = getattr(event, "is_user_annotation", None)
    return bool(marked and marked()) or event.name().startswith(NO_KERNELS)


def busy_ns(intervals: list[tuple[int, int]]) -> int:
    """Length of the union of intervals: kernels on several streams may overlap."""
    busy, end = 0, 0
    for first, last in sorted(intervals):
        busy += max(0, last - max(first, end))
        end = max(end, last)
    return busy


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

"""What benchmarks of speed share: contestants that take turns in one process, and the ratios of their times.

The speed of a machine drifts, and other processes want it too. So nothing is measured alone: contestants take turns of a step
(on a GPU of a few), who begins changes with every round, and what is told is the ratio of two of them within a block of steps.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import quantile_test

from common.errors import InputError
from configs.load import load_config
from ranks.launch import start_accelerator
from training.ends import open_run_directory
from training.flush import flush
from training.resume import ResumePoint
from training.run import Run, build_run
from training.step import training_step

DEFAULT_RECIPE = Path(__file__).parent.parent / "configs" / "pydoc_micro.yaml"
BLOCK = 20
"""Steps whose times are added up; a run's transfer and, by default, its attention probe come once in as many."""
FEWEST_BLOCKS = 6
"""Between the smallest and the largest of fewer ratios, the true median lies in less than 95% of all cases."""
FIRST = 5
"""Steps of each contestant before the blocks: memory is laid out, kernels are chosen, compilers run."""
TURN = {"cpu": 1, "cuda": 5}
"""Steps of a turn. A GPU is waited for at the end of a turn, and the host that runs ahead of it must get the chance to."""

Step = Callable[[int], None]
"""Takes the step of this number; numbers begin at 1."""


@dataclass(frozen=True)
class Cost:
    """What some steps took."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds of this process on all its cores. Neighbours on the machine do not lengthen it by taking the cores away."""
    extra_bytes: int = 0
    """Peak of the GPU's memory above what was allocated before. 0 on a CPU."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall + other.wall, self.cpu + other.cpu, max(self.extra_bytes, other.extra_bytes))


@dataclass
class Series:
    """What a contestant's steps took: the first ones, and those of each block."""

    first: Cost
    blocks: list[Cost]

    @property
    def wall(self) -> np.ndarray:
        """Seconds per step of each block."""
        return np.array([cost.wall / BLOCK for cost in self.blocks])

    @property
    def cpu(self) -> np.ndarray:
        """CPU seconds per step of each block."""
        return np.array([cost.cpu / BLOCK for cost in self.blocks])


@dataclass(frozen=True)
class Ratio:
    """The median of the blocks' ratios and its 95% interval."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio(above: np.ndarray, below: np.ndarray) -> Ratio:
    """``above / below``, block by block.

    The interval lies between two of the ratios, by the binomial distribution of how many of them are below the true median: it
    holds for few blocks too, where a bootstrap of the median covers less than it says (with two blocks, half).
    """
    ratios = above / below
    found = quantile_test(ratios, p=0.5).confidence_interval(0.95)
    return Ratio(float(np.median(ratios)), float(found.low), float(found.high))


def check_steps(steps: int) -> None:
    """Raises InputError for a number of steps that does not make blocks, or fewer than an interval needs."""
    if steps < FEWEST_BLOCKS * BLOCK or steps % BLOCK:
        least = FEWEST_BLOCKS * BLOCK
        raise InputError(f"--steps: must be a multiple of {BLOCK}, at least {least}, but is {steps}")


def take_turns(contestants: Mapping[str, Step], steps: int, device: torch.device) -> dict[str, Series]:
    """Costs of ``steps`` steps of each contestant, in blocks, after its first ones."""
    names = list(contestants)
    series = {name: Series(_turn(contestants[name], range(1, FIRST + 1), device), []) for name in names}
    turn = TURN[device.type]
    for block in range(FIRST + 1, FIRST + steps + 1, BLOCK):
        for one in series.values():
            one.blocks.append(Cost(0.0, 0.0))
        for start in range(block, block + BLOCK, turn):
            for name in _order(names, (start - FIRST) // turn):
                series[name].blocks[-1] += _turn(contestants[name], range(start, start + turn), device)
    return series


def _order(names: Sequence[str], turn: int) -> Sequence[str]:
    """Everyone begins in turn; every other time in reverse, so that nobody always comes after the same one."""
    first = turn // 2 % len(names)
    order = [*names[first:], *names[:first]]
    return order[::-1] if turn % 2 else order


def _turn(step: Step, numbers: range, device: torch.device) -> Cost:
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    wall, cpu = time.perf_counter(), time.process_time()
    for number in numbers:
        step(number)
    if on_gpu:
        torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Cost(wall, cpu, torch.cuda.max_memory_allocated(device) - before if on_gpu else 0)


def start_run(recipe: Path, overrides: Sequence[str], folder: str, name: str) -> Run:
    """A run of ``recipe`` at its start, with the directory ``folder/name`` opened and nothing shown while it goes on."""
    # The end is far away: however many steps are measured, the warm-up is shorter and the schedule goes on.
    own = [f"output_dir={folder}", f"name={name}", f"telemetry.flush_every={BLOCK}", "train.steps=1000000"]
    config = load_config(recipe, [*overrides, *own])
    run = build_run(
        config,
        start_accelerator(
            config.train.precision, batch_size=config.train.batch_size, stall_seconds=config.train.stall_seconds
        ),
        Path(folder) / name,
        None,
    )
    open_run_directory(run, ResumePoint())
    run.bar.leave = False
    run.bar.close()
    run.watch.say = lambda _: None  # a spike is still looked into and written down
    run.began = time.perf_counter()
    return run


def loop_step(run: Run) -> Step:
    """A step of train_lm.py's loop; evaluation and checkpoints are left out."""

    def step(number: int) -> None:
        training_step(run, number)
        if number % BLOCK == 0:
            flush(run, evaluation_due=False)

    return step


def machine(device: torch.device) -> str:
    """A line that says where this ran."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    processor = platform.processor() or platform.machine()
    return f"{processor}, {torch.get_num_threads()} threads, torch {torch.__version__}"

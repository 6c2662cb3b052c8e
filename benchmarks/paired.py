"""Benchmarks of speed: contestants that take turns in one process, and the ratios of their times.

The speed of a machine drifts, and other processes compete for it. So contestants take turns, one step at a time (on a GPU a few),
in an order that changes with every round, and what counts is the ratio of two of them within a block of steps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.stats import quantile_test

from common.command import ArgumentParser
from common.errors import InputError
from configs.load import load_config
from data.store import TokenStore
from ranks.launch import start_accelerator
from training.ends import open_run_directory
from training.flush import flush
from training.resume import ResumePoint
from training.run import Run, build_run
from training.step import training_step

from .turns import Cost, Step, take_turn

DEFAULT_RECIPE = Path(__file__).parent.parent / "configs" / "pydoc_micro.yaml"
BLOCK = 20
"""Steps whose times are summed; each block has one transfer of rows and, by default, one attention probe."""
FEWEST_BLOCKS = 6
"""With fewer ratios, even the interval between the smallest and the largest covers the median in less than 95% of cases."""
FIRST = 5
"""Warm-up steps of each contestant: memory is allocated, kernels are chosen, compilers run."""
TURN = {"cpu": 1, "cuda": 5}
"""Steps of a turn. A turn ends when the GPU is done, so it must be long enough for the host to run ahead of it."""

Clock = Literal["wall", "cpu"]
CLOCKS: tuple[Clock, Clock] = ("wall", "cpu")


@dataclass
class Series:
    """The costs of a contestant: of the warm-up steps, and of each block."""

    first: Cost
    blocks: list[Cost]

    def per_step(self, clock: Clock) -> np.ndarray:
        """Seconds per step of each block."""
        return np.array([getattr(cost, clock) / BLOCK for cost in self.blocks])


@dataclass(frozen=True)
class Ratio:
    """The median of the blocks' ratios and its 95% interval."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.3f} [{self.low:.3f}, {self.high:.3f}]"


def compare(above: Series, below: Series, clock: Clock) -> Ratio:
    """The :func:`ratio` of two contestants' times per step."""
    return ratio(above.per_step(clock), below.per_step(clock))


def ratio(above: np.ndarray, below: np.ndarray) -> Ratio:
    """``above / below``, block by block.

    The interval is that of the sign test, which is exact for few blocks too, where a bootstrap of the median covers too little.
    """
    ratios = above / below
    found = quantile_test(ratios, p=0.5).confidence_interval(0.95)
    return Ratio(float(np.median(ratios)), float(found.low), float(found.high))


def parse_arguments(parser: ArgumentParser) -> Any:
    """Add recipe, steps and overrides, and parse. Raises InputError unless the steps make enough whole blocks."""
    parser.add_argument("--config", type=Path, default=DEFAULT_RECIPE)
    parser.add_argument("--steps", type=int, default=200, help=f"steps of each contestant, in {BLOCK}s")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    arguments = parser.parse_args()
    if (steps := arguments.steps) < (least := FEWEST_BLOCKS * BLOCK) or steps % BLOCK:
        raise InputError(f"--steps: must be a multiple of {BLOCK}, at least {least}, but is {steps}")
    return arguments


def take_turns(contestants: Mapping[str, Step], steps: int, device: torch.device) -> dict[str, Series]:
    """Costs of ``steps`` steps of each contestant, in blocks, after its warm-up."""
    series = {name: Series(warm_up(step, device), []) for name, step in contestants.items()}
    for block in range(steps // BLOCK):
        for name, cost in take_block(contestants, block, device).items():
            series[name].blocks.append(cost)
    return series


def warm_up(step: Step, device: torch.device) -> Cost:
    """The cost of a contestant's first steps."""
    return take_turn(step, range(1, FIRST + 1), device)


def take_block(contestants: Mapping[str, Step], block: int, device: torch.device) -> dict[str, Cost]:
    """The costs of a block (from 0), in which the contestants, warmed up, take turns."""
    names, turn = list(contestants), TURN[device.type]
    costs = dict.fromkeys(names, Cost(0.0, 0.0))
    first = FIRST + 1 + block * BLOCK
    for start in range(first, first + BLOCK, turn):
        for name in _order(names, (start - FIRST) // turn):
            costs[name] += take_turn(contestants[name], range(start, start + turn), device)
    return costs


def _order(names: Sequence[str], turn: int) -> Sequence[str]:
    """A rotation of the names, reversed every other time, so that none always follows the same one."""
    first = turn // 2 % len(names)
    order = [*names[first:], *names[:first]]
    return order[::-1] if turn % 2 else order


def start_run(recipe: Path, overrides: Sequence[str], folder: str, name: str, store: TokenStore | None = None) -> Run:
    """A run of ``recipe`` at its start, which writes to ``folder/name`` and prints nothing.

    ``store``: its tokens, if not those that the recipe leads to.
    """
    # So many that the schedule never ends, however many steps are measured.
    own = [f"output_dir={folder}", f"name={name}", f"telemetry.flush_every={BLOCK}", "train.steps=1000000"]
    config = load_config(recipe, [*overrides, *own])
    train = config.train
    accelerator = start_accelerator(train.precision, batch_size=train.batch_size, stall_seconds=train.stall_seconds)
    run = build_run(config, accelerator, Path(folder) / name, None, store=store)
    open_run_directory(run, ResumePoint())
    run.bar.leave = False
    run.bar.close()
    run.watch.say = lambda _: None  # spikes are still detected and logged
    run.began = time.perf_counter()
    return run


def loop_step(run: Run) -> Step:
    """A step of train_lm.py's loop without evaluation and checkpoints."""

    def step(number: int) -> None:
        training_step(run, number)
        if number % BLOCK == 0:
            flush(run, evaluation_due=False)

    return step

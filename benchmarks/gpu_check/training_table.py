"""Speed of the training loop on GPT-2 124M: telemetry, head and objective, torch.compile, and a plain GPT beside it.

    python -m benchmarks.gpu_check.training_table --lines FILE --seconds S [--device cpu|cuda] [--groups eager compiled]
        [--blocks N]

The contestants of a group take turns (benchmarks/paired.py); after each block, lines sum up all blocks so far. Lines:

    peak            device, sheet_tflops (data sheet), measured_tflops (a large product of bfloat16 matrices), size
    training        group, contestant, rows (sequences of a step), length, and blocks, tokens_per_s, ms, host_ms, first_s,
                    extra_mib, peak_mib, mfu_sheet, mfu_measured (both in %), or error
    training_ratio  group, above, below, middle, low, high, blocks: of the wall times of a step
    kernel          part, columns, name (triton or torch), reason: what evaluates the loss's softmax
    note            part, text

Of lines about the same thing the last counts. extra_mib is the peak above what all contestants hold between steps; peak_mib adds
what this one holds itself, so it is the peak of a process in which it is alone. host_ms is CPU time of the process, on all its
cores, until all of the step is launched.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.paired import BLOCK, FEWEST_BLOCKS, FIRST, Series, compare, loop_step, take_block, warm_up
from benchmarks.plain_gpt import PlainGPT
from benchmarks.telemetry import MODES
from benchmarks.throughput import LINEAR, METRIC, bare_step
from benchmarks.turns import Cost, Step, take_turn
from common.command import ArgumentParser, exit_status
from common.seeds import stream_seed
from data.batches import Batches
from training.build import model_config

from .devices import clear, device_of, say_kernel, settle
from .lines import Lines, add_arguments, described, lines_of
from .names import (
    GROUPS,
    LOOP,
    LOOP_COMPILED,
    OTHER,
    OTHER_COMPILED,
    PLAIN,
    PLAIN_COMPILED,
    RATIOS,
    SILENT,
)
from .peaks import data_sheet_tflops
from .workload import Workload, prepare, rows_that_fit

MIB = 1 << 20
MOST_BLOCKS = {"cuda": 15, "cpu": 2}
EAGER_SHARE = 0.5
"""Of the part's time, if the compiled group is to follow."""
START_SECONDS = {"eager": {"cuda": 10.0, "cpu": 0.5}, "compiled": {"cuda": 45.0, "cpu": 30.0}}
"""A guess of what it takes to build a contestant and take its first steps."""
MATRIX = {"cuda": 8192, "cpu": 64}
"""Rows and columns of the matrices whose product is timed."""

Build = Callable[[int], Step]
"""A contestant whose steps have this many sequences."""


def main() -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(description="Speed of the training loop on GPT-2 124M.")
    add_arguments(parser)
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--blocks", type=int, help="blocks of a group, at most (default: 15; on a CPU 2)")
    arguments = parser.parse_args()
    lines, device = lines_of(arguments, "training"), device_of(arguments.device)
    settle()
    with tempfile.TemporaryDirectory() as folder:
        workload = prepare(device, Path(folder))
        say_kernel(lines, "training", device, workload.size.vocabulary)
        Table(lines, workload, contestants(workload), arguments.blocks or MOST_BLOCKS[device.type]).measure(
            arguments.groups
        )


def contestants(workload: Workload) -> dict[str, Build]:
    """How to build each contestant."""
    numbers = itertools.count()

    def loop(arm: str, *more: str) -> Build:
        return lambda rows: loop_step(workload.run(f"run_{next(numbers)}", rows, arm, *more))

    return {
        LOOP: loop(LINEAR),
        OTHER: loop(METRIC),
        SILENT: loop(LINEAR, *MODES["off"]),
        PLAIN: functools.partial(plain_step, workload),
        LOOP_COMPILED: loop(LINEAR, "train.compile=true"),
        OTHER_COMPILED: loop(METRIC, "train.compile=true"),
        PLAIN_COMPILED: functools.partial(plain_step, workload, compiled=True),
    }


def plain_gpt(workload: Workload) -> PlainGPT:
    """The plain GPT of the shape of the loop's body, on the current default device."""
    config = model_config(workload.config(1, LINEAR), workload.store.vocab_size, workload.store.eos_id)
    body: Any = config.text_config
    return PlainGPT(body)


def plain_step(workload: Workload, rows: int, compiled: bool = False) -> Step:
    """A step of the plain GPT in the bare loop."""
    config = workload.config(rows, LINEAR)
    ids, seed = workload.store.train.ids, stream_seed(config.seed, "data")
    batches = Batches(ids, config.data.sequence_length, rows, seed)
    with workload.device:
        plain = plain_gpt(workload)
    loss: Any = torch.compile(plain.loss) if compiled else plain.loss
    return bare_step(config, batches, workload.device, plain, loss)


@dataclass
class Contestant:
    """A contestant that has taken its first steps."""

    name: str
    inner: Step
    error: str | None = None
    held_bytes: int = 0
    """What it holds between steps."""
    series: Series = field(default_factory=lambda: Series(Cost(0.0, 0.0), []))
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    def step(self, _: int) -> None:
        """Its next step, numbered by itself. Once it has failed, nothing."""
        if self.error is None:
            try:
                self.inner(next(self.numbers))
            except Exception as error:  # noqa: BLE001 - one contestant's failure is a result, whatever it is
                self.error = described(error)


class Table:
    """The measurement: contestants that take part by name, and the size of a step."""

    def __init__(self, lines: Lines, workload: Workload, builds: dict[str, Build], blocks: int = 6) -> None:
        self.lines, self.workload, self.builds, self.most_blocks = lines, workload, builds, blocks
        self.device, self.rows = workload.device, rows_that_fit(workload)
        self.length = workload.config(1, LINEAR).data.sequence_length
        with torch.device("meta"):
            self.flops_per_token = plain_gpt(workload).flops_per_token(self.length)
        if self.rows < workload.size.rows:
            self.note(f"{self.rows} sequences a step, not {workload.size.rows}, since this GPU's memory is small")
        self.taking_part: dict[str, Contestant] = {}
        self.peaks: dict[str, float | None] = {"sheet": None, "measured": None}

    def measure(self, groups: list[str]) -> None:
        """Write the lines of all groups that there is time for."""
        if self.lines.time_left() < START_SECONDS["eager"][self.device.type]:
            for group in groups:
                self.lines.left_out(f"{group} training")
            return
        self.measure_peak()
        for group in groups:
            reserve = (1 - EAGER_SHARE) * self.lines.seconds if group == "eager" and "compiled" in groups else 0.0
            self.measure_group(group, reserve)
        self.taking_part.clear()
        clear(self.device)

    def measure_peak(self) -> None:
        """Write what the device can do at most, by its data sheet and in a single large product."""
        size, on_gpu = MATRIX[self.device.type], self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if on_gpu else "CPU"
        seconds = matmul_seconds(size, self.device)
        self.peaks = {"sheet": data_sheet_tflops(name), "measured": 2e-12 * size**3 / seconds}
        figures = {f"{which}_tflops": peak for which, peak in self.peaks.items()}
        self.lines.write("peak", device=name, size=size, **figures)

    def measure_group(self, group: str, reserve: float) -> None:
        """Build a group's contestants and measure blocks of them while more than ``reserve`` seconds are left."""
        names = GROUPS[group]
        while not self.build(group, names):
            # They must all have the same batches, so all start again.
            self.rows //= 2
        if group == "compiled" and self.taking_part.keys() <= {LOOP}:
            return  # nothing to compare it with
        number, last = 0, 0.0
        while self.taking_part and number < self.most_blocks:
            limit = reserve if number >= FEWEST_BLOCKS else 0.0
            if number and self.lines.time_left() - limit < 1.1 * last:
                if number < FEWEST_BLOCKS:
                    self.lines.left_out(f"{group} training: blocks {number + 1} to {FEWEST_BLOCKS}")
                return
            start = time.perf_counter()
            self.measure_block(group, number)
            last = time.perf_counter() - start
            number += 1

    def build(self, group: str, names: list[str]) -> bool:
        """Build those contestants that are not there yet and drop those not wanted. False if the memory does not suffice."""
        self.taking_part = {name: one for name, one in self.taking_part.items() if name in names}
        for one in self.taking_part.values():
            one.series.blocks.clear()
        for name in names:
            if name in self.taking_part:
                continue
            clear(self.device)
            kind = "compiled" if "compiled" in name else "eager"
            if self.lines.time_left() < START_SECONDS[kind][self.device.type]:
                self.lines.left_out(f"training: {name}")
                continue
            try:
                self.taking_part[name] = self.start(name)
                continue
            except Exception as error:  # noqa: BLE001 - one contestant's failure is a result, whatever it is
                message, short = described(error), isinstance(error, torch.OutOfMemoryError)
            if short and self.rows > 1:
                half = self.rows // 2
                self.note(f"{name}: {message}; {half} sequences a step from here on, not {self.rows}")
                self.taking_part.clear()
                clear(self.device)
                return False
            self.fail(group, name, message)
        return True

    def start(self, name: str) -> Contestant:
        """Build a contestant and let it take its first steps. Raises what goes wrong."""
        before = self.allocated()
        inner = self.builds[name](self.rows)
        one = Contestant(name, inner)

        def step(_: int) -> None:
            inner(next(one.numbers))

        one.series.first = warm_up(step, self.device)
        take_turn(step, range(FIRST, BLOCK), self.device)  # the first transfer and probe may compile something too
        one.held_bytes = self.allocated() - before
        return one

    def measure_block(self, group: str, number: int) -> None:
        """Measure a block and write what all blocks so far say."""
        costs = take_block({name: one.step for name, one in self.taking_part.items()}, number, self.device)
        for name, one in list(self.taking_part.items()):
            if one.error is None:
                one.series.blocks.append(costs[name])
            else:
                self.fail(group, name, one.error)
        for one in self.taking_part.values():
            self.lines.write("training", **self.keys(group, one.name), **self.figures(one))
        found = {name: one.series for name, one in self.taking_part.items()}
        for above, below in RATIOS:
            if above in found and below in found:
                ratio = compare(found[above], found[below], "wall")
                values = {"middle": ratio.middle, "low": ratio.low, "high": ratio.high}
                blocks = len(found[above].blocks)
                self.lines.write("training_ratio", group=group, above=above, below=below, **values, blocks=blocks)

    def fail(self, group: str, name: str, error: str) -> None:
        """Write that a contestant failed, and go on without it."""
        self.lines.write("training", **self.keys(group, name), error=error)
        self.taking_part.pop(name, None)
        clear(self.device)

    def note(self, text: str) -> None:
        """Write a remark."""
        self.lines.write("note", part="training", text=text)

    def keys(self, group: str, name: str) -> dict[str, Any]:
        """What a line of the training table is about."""
        return {"group": group, "contestant": name, "rows": self.rows, "length": self.length}

    def figures(self, one: Contestant) -> dict[str, Any]:
        """Medians over a contestant's blocks."""
        wall, host = (float(np.median(one.series.per_step(clock))) for clock in ("wall", "cpu"))
        speed = self.rows * self.length / wall
        figures: dict[str, Any] = {"blocks": len(one.series.blocks), "tokens_per_s": speed, "ms": 1e3 * wall}
        figures |= {"host_ms": 1e3 * host, "first_s": one.series.first.wall}
        if self.device.type == "cuda":
            extra = max(cost.extra_bytes for cost in one.series.blocks)
            figures |= {"extra_mib": extra / MIB, "peak_mib": (extra + one.held_bytes) / MIB}
        for which, peak in self.peaks.items():
            figures[f"mfu_{which}"] = None if peak is None else 1e-10 * speed * self.flops_per_token / peak
        return figures

    def allocated(self) -> int:
        """Bytes allocated on the GPU; 0 on a CPU."""
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0


def matmul_seconds(size: int, device: torch.device, repeats: int = 10) -> float:
    """Median time of a product of two square bfloat16 matrices."""
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator, device=device).bfloat16() for _ in range(2))
    out = torch.empty_like(a)

    def multiply(_: int) -> None:
        torch.mm(a, b, out=out)

    turns = [take_turn(multiply, range(repeats), device).wall / repeats for _ in range(FIRST + 2)]
    return float(np.median(turns[2:]))


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

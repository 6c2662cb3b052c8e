"""Time and memory of the loss beside other implementations of linear layer and cross-entropy.

    python -m benchmarks.gpu_check.loss_table --lines FILE --seconds S [--device cpu|cuda]

Contestants take turns (benchmarks/paired.py); what they compile or tune, they do in two turns before the timed ones. All start
from float32 hidden states and weights and end with their float32 gradients, as in training under bfloat16 autocast; the casts
are part of the time. Lines:

    loss     N, D, V, contestant, and ms, low, high (quartiles), rounds, memory_mib, ratio, tflops (of the products), or error
    chunks   the same for this project's linear + CE at other sizes of a chunk (rows)
    kernel   part, columns, name (triton or torch), reason

Of lines with the same N, D, V and contestant the later one counts: the first is written after the warm-up.

Shapes: N tokens, D width, V vocabulary.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import loss as losses
from benchmarks.loss import LossAndInputs, forward_and_backward, peak_bytes, three_matmuls
from benchmarks.turns import take_turn
from common.command import ArgumentParser, exit_status

from .devices import clear, device_of, say_kernel, settle
from .lines import Lines, add_arguments, described, lines_of
from .names import IN_CHUNKS, LIGER, LIGER_FLOAT32, OURS, WHOLE

Shape = tuple[int, int, int]
Make = Callable[[], LossAndInputs]
"""Builds a contestant, and raises whatever speaks against it."""

SHAPES: dict[str, list[Shape]] = {
    "cuda": [
        (8192, 768, 50304),
        (32768, 768, 50304),
        (8192, 2048, 128256),
        (32768, 2048, 128256),
        (8192, 2048, 50304),
        (8192, 768, 128256),
        (32768, 2048, 50304),
        (32768, 768, 128256),
    ],
    "cpu": [(64, 8, 100), (96, 8, 60)],
}
"""The most telling first."""
CHUNKS = {"cuda": [1024, 2048, 4096, 8192], "cpu": [16, 32]}
"""Tokens of a chunk that are tried on the first shape."""
FEWEST, MOST = 3, 15
"""Timed rounds."""
TURN_SECONDS = 0.01
"""A turn takes about this long if that is at most MOST_REPEATS evaluations: then the wait at its end hardly counts."""
MOST_REPEATS = 5
START_SECONDS = {"cuda": 10.0, "cpu": 0.5}
"""What a shape takes besides its rounds: inputs, compilation."""
MIB = 1 << 20

CONTESTANTS: dict[str, Make] = {
    OURS: lambda: losses.chunked("linear", "ce"),
    "ours, metric + CE": lambda: losses.chunked("metric", "ce"),
    "ours, metric + TFSD": lambda: losses.chunked("metric", "tfsd"),
    "ours, metric + TFSD, statistics": lambda: losses.chunked("metric", "tfsd", statistics=True),
    "ours, metric + TFSD, torch kernel": lambda: losses.chunked("metric", "tfsd", kernel="torch"),
    "F.cross_entropy on all logits": lambda: losses.all_logits,
    "torch linear_cross_entropy": losses.torch_linear_cross_entropy,
    LIGER: losses.liger,
    LIGER_FLOAT32: lambda: losses.liger(accum_dtype=torch.float32),
    "cut-cross-entropy": lambda: losses.cut_cross_entropy("cce"),
    "cut-cross-entropy, unfiltered": lambda: losses.cut_cross_entropy("cce", filter_eps=None),
}


def main() -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(description="Time and memory of the loss beside other implementations.")
    add_arguments(parser)
    arguments = parser.parse_args()
    lines, device = lines_of(arguments, "loss"), device_of(arguments.device)
    settle()
    for vocabulary in dict.fromkeys(V for *_, V in SHAPES[device.type]):
        say_kernel(lines, "loss", device, vocabulary)
    measure(lines, device, SHAPES[device.type], CHUNKS[device.type])


def measure(
    lines: Lines,
    device: torch.device,
    shapes: list[Shape],
    chunks: Iterable[int] = (),
    contestants: Mapping[str, Make] = CONTESTANTS,
) -> None:
    """Write the tables of all shapes that there is time for."""
    jobs: list[tuple[str, Shape, Mapping[str, Make], dict[str, dict[str, Any]]]]
    jobs = [("loss", shape, contestants, {}) for shape in shapes]
    sizes = {f"chunks of {rows}": rows for rows in chunks}
    trials = {name: functools.partial(losses.chunked, "linear", "ce", rows=rows) for name, rows in sizes.items()}
    if trials:
        jobs.insert(1, ("chunks", shapes[0], trials, {name: {"rows": rows} for name, rows in sizes.items()}))
    sizes_left = [_work(shape, len(found)) for _, shape, found, _ in jobs]
    pace = 0.0  # seconds of a round per unit of work
    for number, (table, shape, found, extra) in enumerate(jobs):
        need = START_SECONDS[device.type] + (FEWEST + 2) * pace * sizes_left[number]
        if lines.time_left() < need:
            lines.left_out(f"{table} of N, D, V = {shape[0]}, {shape[1]}, {shape[2]}")
            continue
        share = lines.time_left() * sizes_left[number] / sum(sizes_left[number:])
        taken = measure_shape(lines, table, shape, found, device, share, extra)
        pace = taken / sizes_left[number]


def _work(shape: Shape, contestants: int) -> int:
    N, D, V = shape
    return N * D * V * (contestants + 2)


@dataclass
class _Contestant:
    turn: Callable[[], None]
    repeats: int = 1
    memory_mib: float | None = None
    """None for the products, which make no float32 gradients that could be taken off."""
    seconds: list[float] = field(default_factory=list)


def measure_shape(
    lines: Lines,
    table: str,
    shape: Shape,
    contestants: Mapping[str, Make],
    device: torch.device,
    seconds: float,
    extra: Mapping[str, dict[str, Any]],
) -> float:
    """Write the lines of a shape, with rounds for about ``seconds``; returns the seconds of a round.

    A contestant that fails gets a line with the error, and the others go on. ``extra``: more figures by contestant.
    """
    N, D, V = shape
    keys = {"N": N, "D": D, "V": V}
    ready: dict[str, _Contestant] = {}

    def attempt(name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - one contestant's failure is a result, whatever it is
            ready.pop(name, None)
            lines.write(table, **keys, contestant=name, error=described(error), **extra.get(name, {}))
        else:
            return
        clear(device)  # after the error and the tensors that its traceback holds are gone

    inputs: list[Tensor] = []
    attempt("inputs", lambda: inputs.extend(_inputs(shape, device)))
    if not inputs:
        return 0.0
    for name, make in {WHOLE: None, IN_CHUNKS: None, **contestants}.items():
        attempt(name, functools.partial(_prepare, ready, name, make, inputs, device))
        if name in ready:  # a first figure, in case this process does not live to the end of the rounds
            lines.write(table, **keys, contestant=name, **_figures(ready[name], None, shape), **extra.get(name, {}))
    round_seconds = sum(one.repeats * one.seconds.pop() for one in ready.values())
    rounds = int(max(FEWEST, min(MOST, min(seconds, lines.time_left()) / max(round_seconds, 1e-9))))
    for number in range(rounds):
        for name in list(ready)[:: 1 if number % 2 else -1]:
            attempt(name, functools.partial(_take, ready[name], device))
        if number + 1 >= FEWEST and lines.time_left() < round_seconds:
            break
    for name, one in ready.items():
        lines.write(table, **keys, contestant=name, **_figures(one, ready.get(WHOLE), shape), **extra.get(name, {}))
    ready.clear()
    clear(device)
    return round_seconds


def _inputs(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    N, D, V = shape
    generator = torch.Generator(device).manual_seed(0)
    h_ND = torch.randn(N, D, generator=generator, device=device)
    w_VD = 0.02 * torch.randn(V, D, generator=generator, device=device)
    return h_ND, w_VD, torch.randint(V, (N,), generator=generator, device=device)


def _prepare(
    ready: dict[str, _Contestant], name: str, make: Make | None, inputs: list[Tensor], device: torch.device
) -> None:
    """Build a contestant, warm it up and measure its memory and, roughly, its time."""
    h_ND, w_VD, y_N = inputs
    if make is not None:
        turn = functools.partial(forward_and_backward, make(), h_ND, w_VD, y_N, torch.bfloat16)
    elif name == WHOLE:
        turn = functools.partial(whole_matmuls, h_ND, w_VD)
    else:
        turn = functools.partial(three_matmuls, h_ND, w_VD, torch.bfloat16)
    turn()
    one = _Contestant(turn)
    if make is not None:
        gradients = 4 * (h_ND.numel() + w_VD.numel())
        one.memory_mib = (peak_bytes(turn, device) - gradients) / MIB
    _take(one, device)
    one.repeats = max(1, min(MOST_REPEATS, int(TURN_SECONDS / max(one.seconds[0], 1e-9))))
    ready[name] = one


def _take(one: _Contestant, device: torch.device) -> None:
    """Add the seconds of an evaluation, from one turn."""
    cost = take_turn(lambda _: one.turn(), range(one.repeats), device)
    one.seconds.append(cost.wall / one.repeats)


def whole_matmuls(h_ND: Tensor, w_VD: Tensor) -> None:
    """The three products that any such loss needs, each at once, in bfloat16."""
    h_ND, w_VD = h_ND.bfloat16(), w_VD.bfloat16()
    z_NV = h_ND @ w_VD.T
    z_NV @ w_VD
    z_NV.T @ h_ND


def _figures(one: _Contestant, whole: _Contestant | None, shape: Shape) -> dict[str, Any]:
    low, middle, high = (1e3 * float(x) for x in np.quantile(one.seconds, [0.25, 0.5, 0.75]))
    figures: dict[str, Any] = {"ms": middle, "low": low, "high": high, "rounds": len(one.seconds)}
    figures["memory_mib"] = one.memory_mib
    if whole is not None:
        # Who missed a round is not here.
        figures["ratio"] = statistics.median(a / b for a, b in zip(one.seconds, whole.seconds, strict=True))
    if one is whole:
        figures["tflops"] = 6 * shape[0] * shape[1] * shape[2] / (1e9 * middle)
    return figures


if __name__ == "__main__":
    raise SystemExit(exit_status(main))

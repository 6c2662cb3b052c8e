"""The device of these tests, sizes that suit it, and processes that see it."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from accelerate.state import AcceleratorState

from analysis.replay.rerun import LOOSE, agrees
from configs.load import load_config
from tests.conftest import ROOT, rows_of
from tests.distributed.ranks import Rank
from train_lm import train

VARIABLE = "GPU_CHECK_DEVICE"
ASKED = os.environ.get(VARIABLE) or None
DEVICE = ASKED or ("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE == "cuda"
LIMIT = 120
"""Seconds that a process may take."""
SIZES = (
    "data.vocab_size=4096",
    "data.sequence_length=256",
    "body.n_layer=4",
    "body.n_head=4",
    "body.n_embd=256",
    "train.batch_size=16",
    "optimizer.lr=1e-3",
)
"""Of a run on a GPU: more tokens than one chunk of the loss, and more targets than small special cases of kernels take."""
COUNTED = ("tfsd/weight_p10", "tfsd/weight_below_1pct")
"""Metrics that count tokens or bins, so that rounding moves them by a whole one."""
HALF = 1e-2
"""Tolerance of runs in half precision on a GPU, whose kernels add in any order: a sum that is off by a hair is rounded to the
next number. With noise of 1e-8 to 1e-6 on the gradients of 20 steps in bf16, metrics differ by up to 2.3e-3, except the largest
attention logit: where all logits are small it differs by 2e-2, so such runs are compared without the probe of attention."""

T = TypeVar("T")


def size(tiny: T, real: T) -> T:
    """``tiny`` on a CPU, ``real`` on a GPU."""
    return real if ON_GPU else tiny


@contextlib.contextmanager
def on_device() -> Iterator[None]:
    """Within the block this process and its children use the device; before and after it Accelerate remembers nothing."""
    patch = pytest.MonkeyPatch()
    if ON_GPU:
        patch.delenv("ACCELERATE_USE_CPU", raising=False)  # which tests/conftest.py sets for all other tests
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        patch.undo()
        if ON_GPU:  # other workers share it
            gc.collect()
            torch.cuda.empty_cache()


class Runs:
    """Runs of the tiny recipe, at the sizes of the device, below one folder."""

    def __init__(self, recipe: Path, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder

    def overrides(self, name: str, *overrides: str) -> list[str]:
        """The command line's part after the recipe."""
        return [f"output_dir={self.folder}", *(SIZES if ON_GPU else ()), f"name={name}", *overrides]

    def here(self, name: str, *overrides: str, status: int = 0) -> Path:
        """Train in this process; returns the run directory."""
        AcceleratorState._reset_state(reset_partial_state=True)
        ended = train(load_config(self.recipe, self.overrides(name, *overrides)))
        assert ended == status, f"{name} ended with {ended}"
        return self.folder / name

    def process(self, name: str, *overrides: str, status: int = 0, **environment: str) -> Path:
        """Train in a process of its own; returns the run directory.

        On a CPU it is forked from a server that has imported what takes long. A fork cannot use CUDA if its parent has only
        asked whether there is any.
        """
        command = [str(ROOT / "train_lm.py"), "--config", str(self.recipe), *self.overrides(name, *overrides)]
        if ON_GPU:
            python(*command, status=status, **environment)
        else:
            rank = Rank(command, os.environ | environment)
            try:
                said, told = rank.communicate(LIMIT)
            finally:
                rank.kill()
            assert rank.returncode == status, f"{name} ended with {rank.returncode}\n{said[-2000:]}\n{told[-4000:]}"
        return self.folder / name


def python(*arguments: object, status: int = 0, **environment: str) -> str:
    """Run Python, which must end with ``status``; returns what it printed."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=LIMIT
    )
    assert done.returncode == status, f"status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def assert_same_run(one: Path, other: Path, tolerance: float | None = None) -> None:
    """All metrics of all steps: the same to the bit on a CPU, on a GPU within the tolerance that a replay has there. Given a
    ``tolerance``, within that on either. The message lists the largest differences."""
    tolerance = (LOOSE if ON_GPU else 0.0) if tolerance is None else tolerance
    a, b = rows_of(one), rows_of(other)
    assert [row["step"] for row in a] == [row["step"] for row in b]
    found: list[tuple[float, str]] = []
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys(), f"step {x['step']}: {sorted(x.keys() ^ y.keys())} in one of them only"
        for name in x.keys() - set(COUNTED if tolerance else ()):
            u, v = float(x[name]), float(y[name])  # spelled out where fp16 has overflowed
            if not agrees(u, v, tolerance):
                difference = abs(u - v) / max(abs(u), 1e-30)
                found.append((difference, f"step {x['step']}: {name} {u:.9g} and {v:.9g} ({difference:.2g})"))
    worst = "\n".join(line for _, line in sorted(found, reverse=True)[:10])
    first = min((line for _, line in found), key=lambda line: int(line.split()[1][:-1]), default="")
    assert not found, f"{len(found)} values differ by more than {tolerance:g}; first {first}; largest:\n{worst}"


def series(run: Path, name: str) -> list[Any]:
    """A metric's values at all steps of a run."""
    return [row[name] for row in rows_of(run)]

"""Correctness on one GPU, or with GPU_CHECK_DEVICE=cpu the same code on tiny sizes. Without either these tests are skipped: their
counterparts for the CPU are elsewhere, and tests/benchmarks/test_gpu_whole.py runs the first one of each file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from .device import ASKED, VARIABLE, Runs, on_device

FIRST_ONLY = "GPU_CHECK_FIRST_ONLY"
"""A variable that, if set, leaves the first test of each file but that of LONGEST: enough to try the command that runs them."""
LONGEST = "test_compiled.py"
"""Its test takes as long as the first ones of all others."""

if ASKED not in (None, "cpu", "cuda"):
    raise pytest.UsageError(f"{VARIABLE}={ASKED}: must be cuda or cpu")
if ASKED == "cuda" and not torch.cuda.is_available():
    raise pytest.UsageError(f"{VARIABLE}=cuda: torch {torch.__version__} finds no GPU")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    nothing_to_run_on = ASKED is None and not torch.cuda.is_available()
    for item in ours:
        item.add_marker(pytest.mark.gpu)
        if nothing_to_run_on:
            item.add_marker(pytest.mark.skip(reason=f"no GPU; {VARIABLE}=cpu runs it on the CPU"))
    if os.environ.get(FIRST_ONLY):
        first = {item.path: item for item in reversed(ours) if item.path.name != LONGEST}
        left_out = [item for item in ours if item is not first.get(item.path)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    with on_device():
        yield


@pytest.fixture
def runs(workspace: Path, tmp_path: Path) -> Runs:
    """Runs that write to this test's own directory."""
    return Runs(workspace / "tiny.yaml", tmp_path)

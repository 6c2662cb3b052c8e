"""Correctness on one GPU; GPU_CHECK_DEVICE=cpu proves the same code on tiny sizes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from .device import ASKED, DEVICE, VARIABLE, WHY_NOT, Runs, on_device

if ASKED not in (None, "cpu", "cuda"):
    raise pytest.UsageError(f"{VARIABLE}={ASKED}: must be cuda or cpu")
if ASKED == "cuda" and not torch.cuda.is_available():
    raise pytest.UsageError(f"{VARIABLE}=cuda: torch {torch.__version__} finds no GPU")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.gpu)
            if DEVICE == "none":
                item.add_marker(pytest.mark.skip(reason=WHY_NOT))


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    with on_device():
        yield


@pytest.fixture
def runs(workspace: Path, tmp_path: Path) -> Runs:
    """Runs that write to this test's own directory."""
    return Runs(workspace / "tiny.yaml", tmp_path)

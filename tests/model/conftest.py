"""What tests of models in runs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def start(recipe: dict[str, Any]) -> Callable[..., int]:
    """Train tiny.yaml with overrides in this test's directory; the exit status."""
    from configs.load import load_config
    from training.loop import run_training

    def train(*overrides: str) -> int:
        return run_training(load_config(recipe["path"], [*recipe["overrides"], *overrides]))

    return train

"""What tests of models in runs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

SHORT = ("train.steps=12", "checkpoint.every=4", "train.eval_every=12")
"""Where the length of a run does not matter: as many checkpoints as tiny.yaml has, in fewer steps."""


@pytest.fixture
def start(recipe: dict[str, Any]) -> Callable[..., int]:
    """Train tiny.yaml for 12 steps with overrides in this test's directory; the exit status."""
    from configs.load import load_config
    from training.loop import run_training

    def train(*overrides: str) -> int:
        return run_training(load_config(recipe["path"], [*recipe["overrides"], *SHORT, *overrides]))

    return train

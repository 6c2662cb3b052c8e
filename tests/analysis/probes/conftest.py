"""Runs that the probes are exercised on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.analysis.trained import write_training


@pytest.fixture(scope="session")
def two_heads(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run with a linear head and one with a metric head, each with two checkpoints."""
    folder = tmp_path_factory.mktemp("two_heads")
    made = [
        write_training(corpus, folder, arm, seed=0, steps=[10, 20], head=head)
        for arm, head in (("flat", "linear"), ("curved", "metric"))
    ]
    return [str(run) for run in made]

"""Runs with several checkpoints on the corpus of tests/analysis/corpus.py, as the studies of synonyms read them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from .corpus import PAIRS, write_model

TOKENS_PER_STEP = 16
_HELD_OUT = 0.1
"""Share of the text, enough for six places of every word."""


def write_pairs(folder: Path) -> Path:
    """The pairs of the corpus as a file; the fourth has a word that the text does not."""
    path = folder / "pairs.csv"
    path.write_text("".join(f"{a},{b}\n" for a, b in [*PAIRS, ("river", "zymurgy")]))
    return path


def write_training(
    corpus: Path, folder: Path, arm: str, *, seed: int, steps: Sequence[int], head: str = "linear", c: bool = False
) -> Path:
    """The run ``folder/{arm}_seed{seed}`` with a model at each of ``steps``: at first that of the run's own seed.

    The later ones are models of other seeds. With ``c`` metrics.jsonl logs step / 1000 as the weight of each step.
    """
    made = write_model(corpus, f"{folder.name}_{arm}_{seed}", seed=seed, head=head, validation_fraction=_HELD_OUT)
    run = folder / f"{arm}_seed{seed}"
    run.mkdir(parents=True)
    config = yaml.safe_load((made / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"name": run.name, "seed": seed}))
    for step in steps:
        if step != steps[0]:
            name = f"{folder.name}_{arm}_{seed}_{step}"
            made = write_model(corpus, name, seed=100 * seed + step, head=head, validation_fraction=_HELD_OUT)
        checkpoint = run / "checkpoints" / f"step_{step:08}"
        shutil.copytree(made / "checkpoints" / "step_00000001", checkpoint)
        state: dict[str, Any] = {"step": step, "tokens": TOKENS_PER_STEP * step}
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    if c:
        rows = [{"step": step, "tfsd/weight_mean": step / 1000} for step in range(1, steps[-1] + 1)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run

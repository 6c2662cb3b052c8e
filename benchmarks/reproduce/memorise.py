"""A small GPT that learns one batch by heart: full-batch training, in which nothing but the optimizer can make the loss rise.

Shapes: B sequences, T positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from configs.load import load_config
from training.run import Run, build_run
from training.step import training_step

from .train import RECIPE

Probe = Callable[[Run, Tensor, Tensor], dict[str, float | None]]
"""From the run and its batch (x_BT, y_BT) to further values of the row."""
FULL_BATCH = (
    *("optimizer.clip_norm=null", "optimizer.weight_decay=0", "train.batch_size=8", "checkpoint.every=100000"),
    *("train.eval_every=100000", "train.eval_sequences=2", "telemetry.attention_every=null"),
)
"""What differs from the recipe: no clipping and no decay, so that a step is Adam's own."""
ALL_TELEMETRY = ("telemetry.edge_every=1", "telemetry.attention_every=1")
"""Everything at every step, for about twice the time."""


class SameBatch:
    """Batches that are all the first one."""

    def __init__(self, batches: Any) -> None:
        self._batches, self._first = batches, batches.at(1)
        self.sequences_per_epoch = len(self._first[0])

    def at(self, batch: int) -> tuple[Tensor, Tensor]:
        """(x_BT, y_BT), int64."""
        x_BT, y_BT = self._first
        return x_BT.clone(), y_BT.clone()


def memorise(overrides: Sequence[str], *, every: int = 0, probe: Probe | None = None) -> dict[str, list[float | None]]:
    """Train with the same batch at every step, and return the rows as columns by metric, from step 1; None where a row has no
    value. Ends early where the loss is not finite. ``probe``: called before every ``every``-th step."""
    from accelerate.state import AcceleratorState

    from ranks.launch import start_accelerator

    AcceleratorState._reset_state(reset_partial_state=True)
    config = load_config(RECIPE, [*FULL_BATCH, *overrides])
    accelerator = start_accelerator(config.train.precision, batch_size=config.train.batch_size, stall_seconds=1800)
    run = build_run(config, accelerator, Path("unwritten"), None, writes=False)
    run.batches = SameBatch(run.batches)  # type: ignore[assignment]
    rows: list[dict[str, Any]] = []
    for step in range(1, config.train.steps + 1):
        probed = probe(run, *run.batches.at(step)) if probe and step > 1 and step % every == 0 else {}
        training_step(run, step)
        (row,) = run.recorder.transfer().rows
        rows.append(row | probed)
        if not math.isfinite(row["loss/nll"]):
            break
    names = sorted({name for row in rows for name in row})
    return {name: [_plain(row.get(name)) for row in rows] for name in names}


def _plain(value: Any) -> float | None:
    return float(f"{value:.7g}") if value is not None and math.isfinite(value) else None

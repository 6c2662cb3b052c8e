"""What of a run's costs can be measured on the machine at hand: steps of small models, checkpoints, and rows of metrics.

Steps are measured in CPU seconds of this process, so that neighbours on the machine do not lengthen them; files by the clock.
Shapes: B sequences, T positions.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from configs.load import load_config
from optim.optimizers import build_optimizer
from record.rows import read_rows
from training.build import build_model, prepare_model
from training.memory import Shapes, shapes_of
from training.saving import save_checkpoint

from .paired import BLOCK, DEFAULT_RECIPE, loop_step, start_run

REPEATS = 5
"""Steps of each small model; the fastest counts, which the machine disturbed least."""
READ_ROWS = 2000
"""Rows of the file whose reading is timed."""
_LAYER = re.compile(r"\blayer_\d+\b")


@dataclass(frozen=True)
class RowBytes:
    """Mean bytes of metrics.jsonl for one step, by what they are about."""

    fixed: float
    layer: float
    """For each layer."""

    def row(self, layers: int) -> float:
        """Of a model with so many layers."""
        return self.fixed + layers * self.layer


@dataclass(frozen=True)
class Files:
    """What a run wrote, and how long that took."""

    layers: int
    """Of its model."""
    rows: RowBytes
    seconds_per_row_read: float
    """Of reading metrics.jsonl back, as every start of a run does."""
    memory_per_row_read: float
    """Bytes that a row takes as Python objects."""
    checkpoint_bytes: int
    """Of all its files."""
    checkpoint_seconds: float


def row_bytes(metrics: str, layers: int) -> RowBytes:
    """From the text of a metrics.jsonl of a model with ``layers`` layers. Metrics of every few steps are spread over all."""
    lines = metrics.splitlines()
    # An item by itself has two braces where it has a comma and a space in its row.
    of_layers = sum(
        len(json.dumps({name: value}))
        for line in lines
        for name, value in json.loads(line).items()
        if _LAYER.search(name)
    )
    return RowBytes((len(metrics) - of_layers) / len(lines), of_layers / len(lines) / layers)


def measure_files(recipe: Path = DEFAULT_RECIPE, overrides: Sequence[str] = ()) -> Files:
    """Take the steps between two attention probes of a real run, and write its checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        run = start_run(recipe, overrides, folder, "measured")
        step = loop_step(run)
        for number in range(1, BLOCK + 1):
            step(number)
        began = time.perf_counter()
        save_checkpoint(run, undecided=False)
        seconds = time.perf_counter() - began
        size = sum(path.stat().st_size for path in run.directory.glob("checkpoints/**/*") if path.is_file())
        metrics = run.directory / "metrics.jsonl"
        text = metrics.read_text(encoding="utf-8")
        layers = len(shapes_of(run.bare_model(), run.config.data.sequence_length).blocks)
        metrics.write_text(text * (READ_ROWS // BLOCK), encoding="utf-8")
        began = time.perf_counter()
        read_rows(metrics)
        read_seconds = time.perf_counter() - began
        tracemalloc.start()  # not while time is measured: it slows the reading down
        rows = read_rows(metrics)
        memory, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        rows_read = len(rows)
        return Files(layers, row_bytes(text, layers), read_seconds / rows_read, memory / rows_read, size, seconds)


@dataclass(frozen=True)
class StepCost:
    """A step of a small model."""

    shapes: Shapes
    tokens: int
    seconds: float

    @property
    def flops(self) -> int:
        """By the model of cost."""
        return self.tokens * self.shapes.flops_per_token()


def measure_step(overrides: Sequence[str], vocabulary: int, recipe: Path = DEFAULT_RECIPE) -> StepCost:
    """CPU seconds of forward pass, backward pass and update on random tokens, nothing watched."""
    config = load_config(recipe, overrides)
    model = prepare_model(config, build_model(config, vocabulary, 0))
    optimizer = build_optimizer(model, config.optimizer)
    shape = (config.train.batch_size, config.data.sequence_length)
    x_BT = torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(0))
    seconds = []
    for _ in range(1 + REPEATS):  # the first one lays out memory
        began = time.process_time()
        model(input_ids=x_BT, shift_labels=x_BT, skip_logits=True, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.process_time() - began)
    return StepCost(shapes_of(model, shape[1]), x_BT.numel(), min(seconds[1:]))

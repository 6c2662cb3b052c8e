"""Run directories as train_lm.py writes them, from rows that a test makes up."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

Row = dict[str, Any]


def write_run(
    folder: Path,
    rows: Iterable[Row],
    *,
    events: Iterable[Row] = (),
    config: Row | None = None,
    status: str = "finished",
) -> Path:
    """Write a run directory; the configuration is the given keys on top of a name."""
    rows = list(rows)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": folder.name, **(config or {})}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in events))
    last = rows[-1]["step"] if rows else 0
    (folder / "status.json").write_text(json.dumps({"status": status, "step": last, "reason": ""}))
    return folder


def training_rows(steps: int, *, seed: int = 0, tokens: bool = True, tfsd: bool = False) -> list[Row]:
    """Rows of a loss that falls from 9 to about 3 nats, with noise, validated every tenth step."""
    noise = np.random.default_rng(seed).normal(size=steps)
    rows = []
    for step in range(1, steps + 1):
        nll = 3 + 6 * np.exp(-10 * step / steps) + 0.05 * noise[step - 1]
        row: Row = {"step": step, "loss/nll": nll, "grad_norm/total": 0.5 + 0.1 * abs(noise[step - 1])}
        row |= {"hidden_norm/pre_final/mean": 10 + step / steps, "embedding_norm/mean": 0.3, "embedding_norm/max": 0.5}
        row |= {"tokens": 64 * step} if tokens else {}
        row |= {"tfsd/weight_mean": 0.5, "tfsd/weight_p10": 0.01 if step > 1 else 0.0} if tfsd else {}
        row |= {"validation/nll": nll + 0.01} if step % 10 == 0 else {}
        rows.append(row)
    return rows


def spike(signal: str, step: int) -> Row:
    """A spike event of five steps."""
    return {
        "event": "spike",
        "signal": signal,
        "start_step": step,
        "peak_step": step,
        "end_step": step + 4,
        "height": 2.0,
        "sigmas": 9.0,
        "recovered": True,
    }

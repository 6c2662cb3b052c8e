"""Small runs and suites, written by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from record.suite import PlannedRun, SuitePlan, write_plan
from tests.analysis.written import Row, write_run

STEPS = 60


def curve(seed: int, level: float = 4.0, bump: float = 0.0, first: int = 1) -> list[Row]:
    """Rows of a loss that falls from 7 nats to ``level``; from step 40 to 49 ``bump`` is added, and a stress acts at step 40.
    Validated at the last step; 64 tokens a step."""
    noise = np.random.default_rng(seed).normal(0, 0.02, STEPS + 1)
    rows = []
    for step in range(first, STEPS + 1):
        nll = level + (7 - level) * math.exp(-step / 10) + noise[step] + (bump if 40 <= step < 50 else 0.0)
        row: Row = {"step": step, "tokens": 64 * step, "lr": 0.01, "loss/nll": nll, "grad_norm/total": 1 + noise[step]}
        row |= {"update_rms/head": 0.01, "logit/std": 1 + step / STEPS}
        row |= {"stress/acting": float(step == 40)} if bump else {}
        row |= {"validation/nll": level + 0.01 * seed} if step == STEPS else {}
        rows.append(row)
    return rows


def config(seed: int, rate: float = 0.01, **more: Any) -> Row:
    """A configuration with what the analysis reads."""
    optimizer = {"lr": rate, "warmup_steps": 5}
    return {"seed": seed, "optimizer": optimizer, "train": {"steps": STEPS, "batch_size": 1}, **more}


def write_suite(
    folder: Path, levels: Mapping[str, Mapping[float, float]], seeds: Sequence[int], control: str | None = None
) -> Path:
    """A suite whose runs end at ``levels``, by arm and rate, plus a hundredth of a nat times the seed. A control has seeds from
    100 on."""
    plan = []
    for arm, rates in levels.items():
        for rate, level in rates.items():
            for seed in seeds:
                own = seed + 100 * (arm == control)
                name = f"{arm}_lr{rate:g}_seed{own}"
                rows = curve(own, level)
                rows[-1]["validation/nll"] = level + 0.01 * seed + 0.001 * ((7 * own + len(arm)) % 5)
                write_run(
                    folder / name, rows, config=config(own, rate, head={"kind": arm if arm != control else "base"})
                )
                plan.append(PlannedRun(name, arm, None, rate, own))
    write_plan(folder, SuitePlan(next(iter(levels)), control, tuple(plan)))
    return folder

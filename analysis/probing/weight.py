"""The weight c by which TFSD scales the gradient of CE, as runs log it in training."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ..runs import read_metrics

WEIGHT = "tfsd/weight_mean"
"""The mean of c over the tokens of one batch."""


def logged_weight(run: Path | None) -> pd.Series:
    """The logged c by step; empty if there is no run or it has not logged any."""
    path = run / "metrics.jsonl" if run else None
    metrics = read_metrics(path)[0] if path and path.exists() else pd.DataFrame()
    return metrics[WEIGHT].dropna() if WEIGHT in metrics else pd.Series(dtype="float64")


def tfsd_weight(run: Path | None) -> dict[str, float] | None:
    """The mean c by which TFSD scales (or would scale) the gradient: over the last tenth of training, and its lowest decile
    over all steps. None if the run does not log it."""
    weight = logged_weight(run)
    if weight.empty:
        return None
    last = weight[weight.index > 0.9 * weight.index.max()]
    return {"last_tenth": float(last.mean()), "lowest_decile": float(weight.quantile(0.1))}

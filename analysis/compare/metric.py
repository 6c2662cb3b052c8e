"""The metrics of the studies of synonyms, and the TFSD weight c that a run has logged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from record.finished import read_metrics


@dataclass(frozen=True)
class Metric:
    """A number that a model gets for a query, a set of synonyms or a text."""

    key: str
    heading: str
    """In printed tables."""
    form: str
    """Format specification of its values in tables."""
    meaning: str
    ranks: bool = False
    """Depends only on the order of probabilities. A temperature does not change the order of single tokens, except through
    the probability that the word ends there, which is close to 1 but not equal for all; the rank is the token's own."""


WEIGHT = "tfsd/weight_mean"
"""The mean of c over the tokens of one batch."""


def logged_weight(run: Path | None) -> pd.Series:
    """The logged c by step; empty if there is no run or it has not logged any."""
    path = run / "metrics.jsonl" if run else None
    metrics = read_metrics(path)[0] if path and path.exists() else pd.DataFrame()
    return metrics[WEIGHT].dropna() if WEIGHT in metrics else pd.Series(dtype="float64")


def tfsd_weight(run: Path | None) -> dict[str, float] | None:
    """The mean of c, the factor of TFSD's gradient: over the last tenth of training, and its lowest decile over all steps.

    None if the run does not log it.
    """
    weight = logged_weight(run)
    if weight.empty:
        return None
    last = weight[weight.index > 0.9 * weight.index.max()]
    return {"last_tenth": float(last.mean()), "lowest_decile": float(weight.quantile(0.1))}

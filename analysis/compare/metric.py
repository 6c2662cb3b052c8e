"""What is said of a number that is reported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from record.finished import read_metrics


@dataclass(frozen=True)
class Metric:
    """A number that a question, a set of synonyms or a text has under a model."""

    key: str
    heading: str
    """In printed tables."""
    form: str
    """How its values are printed, as format() takes it."""
    meaning: str
    ranks: bool = False
    """Depends on the order of probabilities alone. Of single tokens no temperature changes that order but through the
    probability that the word ends there, which is close to 1 and not the same for all; the rank is the token's own."""


VIEWS = ("raw", "fitted", "matched")
OVER_TRAINING = ("raw", "fitted")
"""Without matched entropy: two runs need not have checkpoints of the same steps, and what they are matched to changes."""
MEANINGS = {
    "raw": "as it is",
    "fitted": "at the temperature at which it predicts held-out text best",
    "matched": "at the temperature at which its mean entropy is the baseline's",
}
"""On held-out text."""
MEANINGS_WITH_TRUTH = {
    "raw": "as it is",
    "fitted": "at the temperature with the lowest expected NLL on other documents",
    "matched": "at the temperature at which its mean entropy on those documents is the baseline's",
}
"""Where the true distributions are known."""
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

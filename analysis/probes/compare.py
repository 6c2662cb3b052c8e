"""Arms compared on what a probe measured: means over seeds, and differences from the first arm paired by seed.

Intervals are Student's t over seeds. A single seed has none, and neither has a difference between arms without a common seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.compare.statistics import Effect, mean_over_seeds

from .base import Measure


def last_of_each_run(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of each run's last checkpoint in the table."""
    last = table.groupby(["arm", "run"], sort=False)["tokens"].transform("max")
    return table[(table["tokens"] == last) | last.isna()]


def comparisons(table: pd.DataFrame, measures: Sequence[Measure]) -> Iterator[dict[str, Any]]:
    """For each arm, measure and index at the last checkpoint: the mean over seeds and, but for the first arm, the difference.

    ``table`` is that of :mod:`.evaluate`.
    """
    last = last_of_each_run(table)
    arms = list(dict.fromkeys(last["arm"]))
    for measure in measures:
        for index, rows in last[last["measure"] == measure.key].groupby("index"):
            values = {arm: group.set_index("seed")["value"] for arm, group in rows.groupby("arm")}
            for arm in arms:
                if arm in values:
                    yield {
                        "arm": arm,
                        "measure": measure.key,
                        "index": int(index),
                        "mean": mean_over_seeds(values[arm].to_numpy()),
                        "difference": None if arm == arms[0] else _difference(values[arm], values.get(arms[0])),
                    }


def _difference(own: pd.Series, first: pd.Series | None) -> Effect | None:
    """Paired by the seeds that both have; without any, the difference of the means, of which no interval can be given."""
    if first is None:
        return None
    common = [seed for seed in own.index if seed in first.index and pd.notna(seed)]
    if common:
        return mean_over_seeds((own[common] - first[common]).to_numpy())
    return mean_over_seeds(np.array([own.mean() - first.mean()]))

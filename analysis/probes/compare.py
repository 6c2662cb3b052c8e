"""Arms compared on what a probe measured: means over seeds, and differences from the first arm paired by seed.

Intervals are Student's t over seeds. A single seed has none, and neither has a difference between arms without a common seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.compare.statistics import mean_over_seeds

from .base import Measure
from .growth import Growth, growth


def last_of_each_run(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of each run's last checkpoint in the table."""
    last = table.groupby(["arm", "run"], sort=False)["tokens"].transform("max")
    return table[(table["tokens"] == last) | last.isna()]


def comparisons(table: pd.DataFrame, measures: Sequence[Measure]) -> Iterator[dict[str, Any]]:
    """For each arm, measure and index at the last checkpoint: the mean over seeds and, but for the first arm, the difference.

    ``table`` is that of :mod:`.evaluate`. ``paired``: the difference is of seeds that the arm shares with the first; without any
    it is that of the two means, for which there is no interval. ``growth``: of a single number that is declared positive, from so
    many ``checkpoints`` of each run.
    """
    last = last_of_each_run(table)
    first, *others = dict.fromkeys(last["arm"])
    seeds = {arm: rows["seed"].dropna().unique() for arm, rows in last.groupby("arm")}
    shared = {arm: [seed for seed in seeds.get(arm, ()) if seed in seeds.get(first, ())] for arm in others}
    for measure in measures:
        for index, rows in last[last["measure"] == measure.key].groupby("index"):
            values = {arm: group.set_index("seed")["value"] for arm, group in rows.groupby("arm")}
            for arm in (arm for arm in (first, *others) if arm in values):
                one = {"arm": arm, "measure": measure.key, "index": int(index)}
                one |= {"mean": mean_over_seeds(values[arm].to_numpy()), "difference": None, "paired": None}
                if arm != first and first in values:
                    difference = (values[arm] - values[first]).reindex(shared[arm]).to_numpy()
                    if not shared[arm]:
                        difference = np.array([values[arm].mean() - values[first].mean()])
                    one |= {"difference": mean_over_seeds(difference), "paired": bool(shared[arm])}
                all_rows = table[(table["measure"] == measure.key) & (table["arm"] == arm)]
                grown = growth(all_rows) if measure.positive and measure.along is None else Growth(None, [])
                one |= {"growth": grown.rate, "checkpoints": grown.checkpoints}
                yield one

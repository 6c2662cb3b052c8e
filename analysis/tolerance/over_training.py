"""The measures of every checkpoint of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.compare.arms import Diverged, load_member
from analysis.compare.metric import OVER_TRAINING, WEIGHT, logged_weight
from analysis.probes.over_training import Point
from analysis.synonyms.compare import finite_mean, item_means
from analysis.synonyms.encode import Encoded, encode_study
from analysis.synonyms.measure_models import Asked, Data, ask, encode_for
from analysis.synonyms.measures import KEYS
from analysis.synonyms.study import Study
from common.errors import InputError

WEIGHT_STEPS = 20
"""Steps up to a checkpoint over which the logged c, itself a mean over the tokens of one batch, is averaged."""
OTHERS = {
    "temperature_fitted": "temperature at which the model predicts held-out text best",
    "nll": "mean negative log-likelihood on a sample of held-out text, nats per token",
    "distance_ratio": "distance of synonyms' output embeddings over that of their controls, mean over items of single tokens",
    "tfsd_weight": f"{WEIGHT} as logged in training, mean over the {WEIGHT_STEPS} steps up to the checkpoint",
}


def over_training(
    points: Sequence[Point], data: Data, study: Study, *, seed: int, progress: bool = True
) -> pd.DataFrame:
    """A row for each point: which it is, and the mean over items of every metric in both views.

    The column of a metric is its key, with ``_fitted`` behind it in the view of that name. Nothing else is kept of a model's
    answers. Where ``diverged`` is true the model's logits are not finite, and its metrics are NaN.
    Raises :class:`InputError` for a checkpoint that cannot be loaded, and if all have diverged.
    """
    shared = encode_study(study, data.tokenizer, None)
    weights = {point.run: logged_weight(point.member.run) for point in points}
    rows = []
    for number, point in enumerate(points, start=1):
        label = f"{point.run} step {point.step} ({number}/{len(points)})"
        model, encoded = load_member(point.member), encode_for(point.member, data, study, shared)
        asked = _ask_unless_diverged(model, encoded, label=label, seed=seed, progress=progress)
        assert point.step is not None, "points_of gives it"
        near = weights[point.run]
        near = near[(near.index > point.step - WEIGHT_STEPS) & (near.index <= point.step)]
        rows.append(
            {
                "arm": point.arm,
                "run": point.run,
                "seed": point.member.seed,
                "step": point.step,
                "tokens": point.tokens,
                "diverged": asked is None,
                **(dict.fromkeys(_COLUMNS, math.nan) if asked is None else _values(study, asked)),
                "tfsd_weight": float(near.mean()) if len(near) else math.nan,
            }
        )
    if all(row["diverged"] for row in rows):
        raise InputError("all of these models have diverged; name runs with an earlier checkpoint")
    return pd.DataFrame(rows)


def _ask_unless_diverged(model: Any, encoded: Encoded, *, label: str, seed: int, progress: bool) -> Asked | None:
    """The model's answers, or None if its logits are not finite: that is a result of its training and no mistake of the user."""
    try:
        return ask(model, encoded, label=label, entropy=math.nan, seed=seed, progress=progress)
    except Diverged:
        return None


def _column(key: str, view: str) -> str:
    return key if view == "raw" else f"{key}_{view}"


_COLUMNS = (
    "temperature_fitted",
    *(_column("nll", view) for view in OVER_TRAINING),
    "distance_ratio",
    *(_column(key, view) for view in OVER_TRAINING for key in KEYS),
)
"""Of a point's answers."""


def _values(study: Study, asked: Asked) -> dict[str, float]:
    found = {"temperature_fitted": asked.temperatures["fitted"]}
    found |= {_column("nll", view): asked.nll[view] for view in OVER_TRAINING}
    found["distance_ratio"] = float(finite_mean(asked.distance_P))
    for x, view in enumerate(OVER_TRAINING):
        for key, value_XM in asked.measures.items():
            value_P = item_means(study, value_XM[x].astype(np.float64), ~study.shuffled_M)
            found[_column(key, view)] = float(finite_mean(value_P))
    return found

"""Running a probe: every model measured on the same text, as one long table.

The table has a row for each model, measure and, for arrays, place in the array: ``arm``, ``run``, ``seed``, ``step``,
``tokens``, ``diverged``, ``measure``, ``index`` (-1 for a single number) and ``value``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from analysis.compare.arms import Arm, Member, check_positions, load_member, load_tokenizer
from analysis.compare.text import RunText
from common.errors import InputError
from record.finished import checkpoint_state

from .base import Probe
from .over_training import Point

SINGLE = -1
"""The ``index`` of a measure that is one number."""


def last_points(arms: Sequence[Arm]) -> list[Point]:
    """Every member at its own checkpoint."""
    return [_point(arm, member) for arm in arms for member in arm.members]


def _point(arm: Arm, member: Member) -> Point:
    if member.untrained:
        return Point(arm.label, member.label, member, step=0, tokens=0)
    state = checkpoint_state(member.checkpoint)
    step, tokens = (value if type(value := state.get(key)) is int else None for key in ("step", "tokens"))
    return Point(arm.label, member.label, member, step, tokens)


def evaluate(probe: Probe[Any], points: Sequence[Point], text: RunText, *, seed: int) -> pd.DataFrame:
    """The table of this module's docstring. A model whose logits are not finite has diverged: its values are NaN.

    Raises :class:`InputError` for a model that cannot be loaded, or whose tokens or positions are not the text's, and for
    a probe that returns other values than it declares.
    """
    prepared = probe.prepare(text, seed=seed)
    (x_BT, _), vocabulary = text.windows(1, seed=seed), text.tokenizer.get_vocab()
    rows: list[dict[str, Any]] = []
    for point in tqdm(points, desc=probe.kind, unit="model"):
        if not point.member.untrained and load_tokenizer(point.member).get_vocab() != vocabulary:
            raise InputError(f"{point.run}: its tokenizer is not that of the text; compare models with one tokenizer")
        model = load_member(point.member)
        check_positions(model, point.run, x_BT.shape[1])
        values = _values(probe, model, prepared, x_BT, seed)
        known = {**point.columns, "diverged": values is None}
        for measure in probe.measures:
            array = [math.nan] if values is None else np.atleast_1d(values[measure.key])
            first = SINGLE if measure.along is None else 0
            rows += [
                known | {"measure": measure.key, "index": first + number, "value": float(value)}
                for number, value in enumerate(array)
            ]
    return pd.DataFrame(rows).astype({"seed": "Int64", "step": "Int64", "tokens": "Int64"})


def _values(probe: Probe[Any], model: Any, prepared: Any, x_BT: Any, seed: int) -> Mapping[str, Any] | None:
    """What the probe says of a model, checked; None if the model has diverged."""
    import torch

    with torch.no_grad():
        logits_BTV = model(input_ids=torch.from_numpy(x_BT).to(model.device), use_cache=False).logits
        if not bool(torch.isfinite(logits_BTV).all()):
            return None
        values = dict(probe.measure(model, prepared, seed=seed))
    declared = {measure.key: int(measure.along is not None) for measure in probe.measures}
    returned = {key: np.ndim(value) for key, value in values.items()}
    if wrong := [key for key in declared | returned if declared.get(key) != returned.get(key)]:
        raise InputError(
            f"probe {probe.kind}: measure() returned {', '.join(returned) or 'nothing'}, which is not what its measures declare "
            f"({', '.join(wrong)}): a number for each, or a 1-D array where it has an `along`"
        )
    return values

"""Running a probe: every model measured on the same text, as one long table.

The table has a row for each model, measure and, for arrays, place in the array: ``arm``, ``run``, ``seed``, ``step``,
``tokens``, ``diverged``, ``measure``, ``index`` (-1 for a single number) and ``value``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from analysis.compare.arms import Arm, Member, check_positions, load_member, load_tokenizer
from analysis.compare.statistics import Floats
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
    size = text.store.vocab_size
    rows: list[dict[str, Any]] = []
    for point in tqdm(points, desc=probe.kind, unit="model"):
        if not point.member.untrained and load_tokenizer(point.member).get_vocab() != vocabulary:
            raise InputError(f"{point.run}: its tokenizer is not that of the text; compare models with one tokenizer")
        model = load_member(point.member)
        check_positions(model, point.run, x_BT.shape[1])
        values = None if _has_diverged(model, x_BT, size) else _values(probe, model, prepared, seed)
        known = {**point.columns, "diverged": values is None}
        for measure in probe.measures:
            array = np.array([math.nan]) if values is None else np.atleast_1d(values[measure.key])
            first = SINGLE if measure.along is None else 0
            rows += [
                known | {"measure": measure.key, "index": first + number, "value": float(value)}
                for number, value in enumerate(array)
            ]
    return pd.DataFrame(rows).astype({"seed": "Int64", "step": "Int64", "tokens": "Int64"})


def _has_diverged(model: Any, x_BT: Any, vocabulary: int) -> bool:
    """Whether logits of the vocabulary are not finite. (Those of rows that only pad the embedding are -inf.)"""
    import torch

    with torch.no_grad():
        logits_BTV = model(input_ids=torch.from_numpy(x_BT).to(model.device), use_cache=False).logits
    return not bool(torch.isfinite(logits_BTV[..., :vocabulary]).all())


def _values(probe: Probe[Any], model: Any, prepared: Any, seed: int) -> dict[str, Floats]:
    """What the probe measures of a model, as float64. Raises :class:`InputError` for anything that it does not declare."""
    import torch

    with torch.no_grad():
        values = dict(probe.measure(model, prepared, seed=seed))
    found: dict[str, Floats] = {}
    wrong = values.keys() ^ {measure.key for measure in probe.measures}
    for measure in probe.measures:
        value = values.get(measure.key)
        try:
            found[measure.key] = np.asarray(value.cpu() if isinstance(value, torch.Tensor) else value, dtype=np.float64)
        except (TypeError, ValueError):
            wrong.add(measure.key)
            continue
        if found[measure.key].ndim != (measure.along is not None) or found[measure.key].size == 0:
            wrong.add(measure.key)
    if wrong:
        raise InputError(
            f"probe {probe.kind}: what measure() returned is not what its measures declare ({', '.join(sorted(wrong))}): "
            "a number for each, or a 1-D array with at least one value where it has an `along`"
        )
    return found

"""Running a probe: every model measured on the same text, as one long table.

The table has a row for each model, measure and, for arrays, place in the array: ``arm``, ``run``, ``seed``, ``step``,
``tokens``, ``diverged``, ``measure``, ``index`` (-1 for a single number) and ``value``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from analysis.compare.arms import Arm, Member, check_positions, load_member, load_tokenizer
from analysis.compare.statistics import Floats
from analysis.compare.text import RunText
from common.errors import InputError
from record.finished import checkpoint_state

from .base import Measure, Probe
from .between import expanded, partners
from .over_training import Point

SINGLE = -1
"""The ``index`` of a measure that is one number."""


@dataclass(frozen=True)
class Evaluation:
    """What a probe found of all models."""

    table: pd.DataFrame
    """That of this module's docstring."""
    measures: tuple[Measure, ...]
    """Those of the table: the ones between models once for each partner."""
    details: dict[str, Any]
    """By arm, of its first run's last checkpoint: what the probe has to say beside its measures."""
    places: dict[str, list[str]]
    """By what arrays lie along: the names on which all models agree; empty where they do not, or numbers say enough."""

    def names(self, along: str) -> list[str]:
        """The names along this, for a figure's axis."""
        return self.places.get(along, [])


def last_points(arms: Sequence[Arm]) -> list[Point]:
    """Every member at its own checkpoint."""
    return [_point(arm, member) for arm in arms for member in arm.members]


def _point(arm: Arm, member: Member) -> Point:
    if member.untrained:
        return Point(arm.label, member.label, member, step=0, tokens=0)
    state = checkpoint_state(member.checkpoint)
    step, tokens = (value if type(value := state.get(key)) is int else None for key in ("step", "tokens"))
    return Point(arm.label, member.label, member, step, tokens)


def evaluate(probe: Probe[Any], points: Sequence[Point], text: RunText, *, seed: int) -> Evaluation:
    """Measure the models of all points. One whose logits are not finite has diverged: its values are NaN.

    Raises :class:`InputError` for a model that cannot be loaded, or whose tokens or positions are not the text's, and for
    a probe that returns other values than it declares.
    """
    import torch

    prepared = probe.prepare(text, seed=seed)
    (x_BT, _), vocabulary = text.windows(1, seed=seed), text.tokenizer.get_vocab()
    size = text.store.vocab_size
    compares = any(measure.between for measure in probe.measures)
    values: dict[Point, dict[str, Floats] | None] = {}
    kept: dict[Point, Any] = {}
    details: dict[str, Any] = {}
    places: dict[str, set[tuple[str, ...]]] = {measure.along: set() for measure in probe.measures if measure.along}
    with torch.no_grad():
        for point in tqdm(points, desc=probe.kind, unit="model"):
            if not point.member.untrained and load_tokenizer(point.member).get_vocab() != vocabulary:
                raise InputError(
                    f"{point.run}: its tokenizer is not that of the text; compare models with one tokenizer"
                )
            model = load_member(point.member)
            check_positions(model, point.run, x_BT.shape[1])
            values[point] = None
            if _has_diverged(model, x_BT, size):
                continue
            values[point] = _checked(probe, "measure", probe.measure(model, prepared, seed=seed))
            for along, named in places.items():
                named.add(tuple(probe.places_of(model, along)))
            if compares:
                kept[point] = probe.keep(model, prepared)
            if point == _detailed(points, point.arm):
                details[point.arm] = probe.details(model, prepared)
        if compares:
            _compare(probe, points, values, kept)
    measures = expanded(probe, points)
    told = {arm: one for arm, one in details.items() if one is not None}
    agreed = {along: [*next(iter(named))] for along, named in places.items() if len(named) == 1}
    return Evaluation(_table(values, measures), measures, told, agreed)


def _detailed(points: Sequence[Point], arm: str) -> Point:
    """The last checkpoint of an arm's first run."""
    own = [point for point in points if point.arm == arm]
    return [point for point in own if point.run == own[0].run][-1]


def _compare(
    probe: Probe[Any], points: Sequence[Point], values: dict[Point, dict[str, Floats] | None], kept: dict[Point, Any]
) -> None:
    """Add to the values what a model has with each of its partners; NaN where it has none, or that one has diverged."""
    between = [measure.key for measure in probe.measures if measure.between]
    for point, own in kept.items():
        found = values[point]
        assert found is not None, "it has not diverged"
        for suffix, (partner_of, _) in partners(points).items():
            partner = partner_of(points, point)
            known: dict[str, Floats] = {key: np.array(math.nan) for key in between}
            if partner in kept:
                known = _checked(probe, "against", probe.against(own, kept[partner]))
            found |= {f"{key}_{suffix}": value for key, value in known.items()}


def _table(values: Mapping[Point, dict[str, Floats] | None], measures: Sequence[Measure]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for point, found in values.items():
        known = {**point.columns, "diverged": found is None}
        for measure in measures:
            array = np.array([math.nan]) if found is None else np.atleast_1d(found[measure.key])
            first = SINGLE if measure.along is None else 0
            rows += [
                known | {"measure": measure.key, "index": first + number, "value": float(value)}
                for number, value in enumerate(array)
            ]
    return pd.DataFrame(rows).astype({"seed": "Int64", "step": "Int64", "tokens": "Int64"})


def _has_diverged(model: Any, x_BT: Any, vocabulary: int) -> bool:
    """Whether logits of the vocabulary are not finite. (Those of rows that only pad the embedding are -inf.)"""
    import torch

    logits_BTV = model(input_ids=torch.from_numpy(x_BT).to(model.device), use_cache=False).logits
    return not bool(torch.isfinite(logits_BTV[..., :vocabulary]).all())


def _checked(probe: Probe[Any], method: str, returned: Mapping[str, Any]) -> dict[str, Floats]:
    """What a method of the probe returned, as float64. Raises :class:`InputError` for anything that it does not declare."""
    import torch

    measures = [measure for measure in probe.measures if measure.between == (method == "against")]
    found: dict[str, Floats] = {}
    wrong = returned.keys() ^ {measure.key for measure in measures}
    for measure in measures:
        value = returned.get(measure.key)
        try:
            found[measure.key] = np.asarray(value.cpu() if isinstance(value, torch.Tensor) else value, dtype=np.float64)
        except (TypeError, ValueError):
            wrong.add(measure.key)
            continue
        if found[measure.key].ndim != (measure.along is not None) or found[measure.key].size == 0:
            wrong.add(measure.key)
    if wrong:
        raise InputError(
            f"probe {probe.kind}: what {method}() returned is not what its measures declare ({', '.join(sorted(wrong))}): "
            "a number for each, or a 1-D array with at least one value where it has an `along`"
        )
    return found

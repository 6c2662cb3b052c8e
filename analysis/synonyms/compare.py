"""Arms against a baseline: means, paired differences with intervals, tests, and the smallest effects that could be shown.

Shapes: M queries, Q observations (queries of every seed), S seeds, K metrics, P items, X views.

A difference is taken query by query between models of the same seed. All items have the same weight, however many contexts each
has. Missing values (NaN) are left out of an item's mean, and of a mean over seeds.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.compare.arms import Arm, member_values
from analysis.compare.statistics import (
    Bools,
    Effect,
    Floats,
    Ids,
    crossed_bootstraps,
    finite_mean,
    holm,
    ratio,
    signed_rank,
)
from analysis.compare.temperature import VIEWS

from .measure_models import ModelResult
from .metrics import KEYS, METRICS
from .study import Study

TESTED = "log_odds"
"""The metric that is tested item by item, in the matched view."""
_DECIMALS = 6
"""Differences of shares and ranks are rounded to this before they are ranked: metrics are float32, and equal ones must tie."""

Numbers = dict[str, dict[str, dict[str, dict[str, float]]]]
"""[arm][view][metric]: a number and, as "items", how many items have one."""


@dataclass(frozen=True)
class ItemTest:
    """For each item the mean difference of TESTED over its contexts, Wilcoxon's p over them, and Holm's adjusted p."""

    mean_P: Floats
    p_P: Floats
    holm_P: Floats
    lowest_P: Floats
    """The p if all the item's differences had one sign; NaN if it has none."""


@dataclass(frozen=True)
class Comparison:
    """The results of all models, and of the comparison of arms."""

    study: Study
    arms: tuple[Arm, ...]
    """The baseline first."""
    results: Mapping[str, ModelResult]
    """By member label."""
    means: Numbers
    """The "mean" over items of the mean over contexts and seeds."""
    gains: dict[str, Effect]
    """[arm]: log-odds at the word's own places minus the unit's mean at places of other words, raw view."""
    differences: dict[str, dict[str, dict[str, dict[str, Effect]]]]
    """[arm][scope][view][metric]: candidate minus baseline."""
    signed_ranks: Numbers
    """"p" of Wilcoxon's test over the items' mean differences; NaN if no item has one."""
    item_tests: dict[str, ItemTest]
    """[arm], in the matched view, over the mean of the seeds."""


def compare(study: Study, arms: Sequence[Arm], results: Mapping[str, ModelResult], *, seed: int) -> Comparison:
    """Compare every arm after the first with the first."""
    ranks = tuple(m.key for m in METRICS if m.ranks or m.key == TESTED)
    scopes = {"all": (study.own_M, KEYS), "single": (study.own_M & study.single_M, ranks)}
    means: Numbers = {arm.label: {view: {} for view in VIEWS} for arm in arms}
    for arm in arms:
        for view in VIEWS:
            for key in KEYS:
                mean_P = item_means(study, values_of(arm, results, key, view))
                means[arm.label][view][key] = {"mean": float(finite_mean(mean_P)), "items": _known(mean_P)}
    differences: dict[str, dict[str, dict[str, dict[str, Effect]]]] = {}
    signed_ranks: Numbers = {}
    tests: dict[str, ItemTest] = {}
    for arm in arms[1:]:
        print(f"comparing {arm.label}", file=sys.stderr)
        differences[arm.label] = {scope: {} for scope in scopes}
        signed_ranks[arm.label] = {view: {} for view in VIEWS}
        for view in VIEWS:
            rows = {key: values_of(arm, results, key, view, arms[0]) for key in KEYS}
            for metric in METRICS:
                mean_P = item_means(study, rows[metric.key])
                p = _p_value(np.round(mean_P, _DECIMALS) if metric.ranks else mean_P)
                signed_ranks[arm.label][view][metric.key] = {"p": p, "items": _known(mean_P)}
            for scope, (mask_M, keys) in scopes.items():
                effects = effects_of(study, np.stack([rows[key] for key in keys]), mask_M, seed)
                differences[arm.label][scope][view] = dict(zip(keys, effects, strict=True))
        tests[arm.label] = _item_test(study, values_of(arm, results, TESTED, "matched", arms[0]))
    gains = {arm.label: _gain(study, arm, results, seed) for arm in arms}
    return Comparison(study, tuple(arms), results, means, gains, differences, signed_ranks, tests)


def values_of(arm: Arm, results: Mapping[str, ModelResult], key: str, view: str, baseline: Arm | None = None) -> Floats:
    """(S, M): a metric of each member of the arm or, with ``baseline``, its paired difference."""
    x = VIEWS.index(view)
    return member_values(arm, lambda member: results[member.label].metrics[key][x].astype(np.float64), baseline)


def effects_of(study: Study, value_KSM: Floats, mask_M: Bools, seed: int) -> list[Effect]:
    """For each of several metrics the mean over items, with its interval over lemmas, documents and seeds."""
    chosen = np.flatnonzero(mask_M)
    metrics, seeds = value_KSM.shape[:2]
    value_KQ = value_KSM[..., chosen].reshape(metrics, -1)
    item_Q = np.tile(study.item_M[chosen], seeds)
    weight_KQ = np.zeros_like(value_KQ)
    for value_Q, weight_Q in zip(value_KQ, weight_KQ, strict=True):
        counted = np.isfinite(value_Q)
        weight_Q[counted] = 1 / np.bincount(item_Q[counted], minlength=len(study.items))[item_Q[counted]]
    return crossed_bootstraps(
        value_KQ,
        {
            "lemma": np.tile(study.lemma_M[chosen], seeds),
            "document": np.tile(study.document_M[chosen], seeds),
            "seed": np.repeat(np.arange(seeds), len(chosen)),
        },
        weight_MQ=weight_KQ,
        seed=seed,
        units=("lemma", "document"),
    )


def item_means(study: Study, value_SM: Floats) -> Floats:
    """(P,): the mean of each item's finite values, over seeds and queries at its own places; NaN for an item without any."""
    counted_SM = study.own_M & np.isfinite(value_SM)
    return _means(np.broadcast_to(study.item_M, value_SM.shape)[counted_SM], value_SM[counted_SM], len(study.items))


def _means(group_Q: Ids, value_Q: Floats, groups: int) -> Floats:
    """The mean of the values of each group."""
    return ratio(np.bincount(group_Q, value_Q, groups), np.bincount(group_Q, minlength=groups))


def _known(value_P: Floats) -> int:
    return int(np.isfinite(value_P).sum())


def _gain(study: Study, arm: Arm, results: Mapping[str, ModelResult], seed: int) -> Effect:
    """What the context adds to the log-odds that the words have anywhere.

    Computed for each unit: it has fewer queries at places of other words than at its own, and units differ in their controls.
    """
    gain_SM = values_of(arm, results, TESTED, "raw")
    for s, value_M in enumerate(gain_SM):
        elsewhere_M = study.shuffled_M & np.isfinite(value_M)
        anywhere_U = _means(study.unit_M[elsewhere_M], value_M[elsewhere_M], len(study.units))
        gain_SM[s] -= anywhere_U[study.unit_M]
    return effects_of(study, gain_SM[None], study.own_M, seed)[0]


def _p_value(value_P: Floats) -> float:
    """Of Wilcoxon's signed-rank test; NaN without values, which is no evidence of equality."""
    return signed_rank(value_P) if np.isfinite(value_P).any() else float("nan")


def _item_test(study: Study, difference_SM: Floats) -> ItemTest:
    difference_M = finite_mean(difference_SM)
    item_M = study.item_M
    p_P, lowest_P = np.full((2, len(study.items)), np.nan)
    for item in np.unique(item_M[study.own_M]):
        value_Q = difference_M[study.own_M & (item_M == item)]
        p_P[item], lowest_P[item] = _p_value(value_Q), _p_value(np.abs(value_Q))
    return ItemTest(item_means(study, difference_M), p_P, holm(p_P), lowest_P)

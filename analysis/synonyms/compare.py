"""Arms against a baseline: means, paired differences with intervals, tests, and the smallest effect that could have been shown.

Shapes: M questions, Q observations (questions of every seed), P items, X views.

Every model is seen in three views: *raw* as it is, *fitted* at the temperature at which it predicts held-out text best, and
*matched* at the one at which its mean entropy is the baseline's. A difference is taken question by question between models
of the same seed. All items weigh the same, however many contexts each has. What has no value (NaN) is left out: of an item's
mean, and of a mean over seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analysis.compare.arms import Arm
from analysis.compare.metric import VIEWS
from analysis.compare.statistics import Effect, crossed_bootstraps, holm, signed_rank

from .measures import KEYS, METRICS, Measures
from .score import Floats
from .study import Study

TESTED = "log_odds"
"""The metric that is tested pair by pair, in the matched view."""
SCOPES = {"all": "all words", "single": "single tokens only"}
_DECIMALS = 6
"""To which differences of shares and ranks are rounded before they are ranked: measures are float32, and equal ones must tie."""


@dataclass(frozen=True)
class ItemTest:
    """Of each item: the mean difference of TESTED over its contexts, Wilcoxon's p over them, and Holm's adjusted p."""

    mean_P: Floats
    p_P: Floats
    holm_P: Floats
    lowest_P: Floats
    """The p that it would have if all its differences had one sign; NaN where there is none."""


@dataclass(frozen=True)
class Comparison:
    """What was found; keys are arm labels, then scopes, views and metrics."""

    study: Study
    arms: tuple[Arm, ...]
    """The baseline first."""
    measured: dict[str, Measures]
    """By member label."""
    temperatures: dict[str, dict[str, float]]
    """By member label and view; NaN where there is none."""
    means: dict[str, dict[str, dict[str, float]]]
    """[arm][view][metric]: the mean over items of the mean over contexts and seeds."""
    gains: dict[str, Effect]
    """[arm]: log-odds at the places of the word itself minus the unit's mean at places of other words, raw view."""
    differences: dict[str, dict[str, dict[str, dict[str, Effect]]]]
    """[arm][scope][view][metric]: candidate minus baseline."""
    signed_ranks: dict[str, dict[str, dict[str, float]]]
    """[arm][view][metric]: p of Wilcoxon's test over the items' mean differences; NaN if no item has one."""
    items: dict[str, dict[str, dict[str, int]]]
    """[arm][view][metric]: how many items have a mean."""
    paired_items: dict[str, dict[str, dict[str, int]]]
    """[arm][view][metric]: how many have a mean difference."""
    item_tests: dict[str, ItemTest]
    """[arm], in the matched view, over the mean of the seeds."""


def compare(
    study: Study,
    arms: Sequence[Arm],
    measured: dict[str, Measures],
    temperatures: dict[str, dict[str, float]],
    *,
    seed: int,
    progress: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Compare every arm after the first with the first."""
    asked_M = ~study.shuffled_M
    scopes = {"all": asked_M, "single": asked_M & study.single_M}
    keys = {"all": KEYS, "single": tuple(m.key for m in METRICS if m.ranks or m.key == TESTED)}
    means: dict[str, dict[str, dict[str, float]]] = {}
    items: dict[str, dict[str, dict[str, int]]] = {}
    for arm in arms:
        means[arm.label], items[arm.label] = {}, {}
        for x, view in enumerate(VIEWS):
            mean_P = {key: item_means(study, values_of(arm, measured, key, x), asked_M) for key in KEYS}
            means[arm.label][view] = {key: float(finite_mean(value_P)) for key, value_P in mean_P.items()}
            items[arm.label][view] = {key: int(np.isfinite(value_P).sum()) for key, value_P in mean_P.items()}
    paired_items: dict[str, dict[str, dict[str, int]]] = {}
    differences: dict[str, dict[str, dict[str, dict[str, Effect]]]] = {}
    ranks: dict[str, dict[str, dict[str, float]]] = {}
    tests: dict[str, ItemTest] = {}
    for arm in arms[1:]:
        progress(arm.label)
        differences[arm.label] = {scope: {} for scope in scopes}
        ranks[arm.label], paired_items[arm.label] = {}, {}
        for x, view in enumerate(VIEWS):
            rows = {key: paired(arms[0], arm, measured, key, x) for key in KEYS}
            mean_P = {key: item_means(study, value_SM, asked_M) for key, value_SM in rows.items()}
            paired_items[arm.label][view] = {key: int(np.isfinite(value_P).sum()) for key, value_P in mean_P.items()}
            ranks[arm.label][view] = {
                m.key: _p_value(np.round(mean_P[m.key], _DECIMALS) if m.ranks else mean_P[m.key]) for m in METRICS
            }
            for scope, mask_M in scopes.items():
                found = effects(study, np.stack([rows[key] for key in keys[scope]]), mask_M, seed)
                differences[arm.label][scope][view] = dict(zip(keys[scope], found, strict=True))
        tests[arm.label] = _item_test(study, paired(arms[0], arm, measured, TESTED, VIEWS.index("matched")))
    return Comparison(
        study=study,
        arms=tuple(arms),
        measured=measured,
        temperatures=temperatures,
        means=means,
        gains={arm.label: _gain(study, arm, measured, seed) for arm in arms},
        differences=differences,
        signed_ranks=ranks,
        items=items,
        paired_items=paired_items,
        item_tests=tests,
    )


def values_of(arm: Arm, measured: dict[str, Measures], key: str, view: int) -> Floats:
    """(seeds of the arm, M)."""
    return np.stack([measured[member.label][key][view] for member in arm.members]).astype(np.float64)


def paired(baseline: Arm, arm: Arm, measured: dict[str, Measures], key: str, view: int) -> Floats:
    """(seeds of the arm, M): each member minus the baseline's of the same seed, or minus the baseline's mean if it has none.

    Against the mean, intervals leave out how the baseline's own seeds vary.
    """
    base_SM = values_of(baseline, measured, key, view)
    against: dict[int | None, Floats] = {
        member.seed: base_SM[s] for s, member in enumerate(baseline.members) if member.seed is not None
    }
    mean_M = finite_mean(base_SM)
    return values_of(arm, measured, key, view) - np.stack([against.get(m.seed, mean_M) for m in arm.members])


def effect(study: Study, value_SM: Floats, mask_M: npt.NDArray[np.bool_], seed: int) -> Effect:
    """The mean over items of values of seeds and questions, its interval over lemmas, documents and seeds."""
    return effects(study, value_SM[None], mask_M, seed)[0]


def effects(study: Study, value_KSM: Floats, mask_M: npt.NDArray[np.bool_], seed: int) -> list[Effect]:
    """:func:`effect` of each of several metrics."""
    chosen = np.flatnonzero(mask_M)
    metrics, seeds = value_KSM.shape[:2]
    value_KQ = value_KSM[..., chosen].reshape(metrics, -1)
    item_Q = np.tile(study.item_M[chosen], seeds)
    weight_KQ = np.zeros_like(value_KQ)
    for value_Q, weight_Q in zip(value_KQ, weight_KQ, strict=True):
        counted = np.isfinite(value_Q)
        count_P = np.bincount(item_Q[counted], minlength=len(study.items))
        weight_Q[counted] = 1 / count_P[item_Q[counted]]
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


def item_means(study: Study, value_SM: Floats, mask_M: npt.NDArray[np.bool_]) -> Floats:
    """(P,): the mean of each item's finite values, over questions and seeds; NaN for an item without any."""
    counted_SM = mask_M & np.isfinite(value_SM)
    items = np.broadcast_to(study.item_M, value_SM.shape)[counted_SM]
    with np.errstate(invalid="ignore"):
        mean_P: Floats = np.bincount(items, value_SM[counted_SM], len(study.items)) / np.bincount(
            items, minlength=len(study.items)
        )
    return mean_P


def finite_mean(values: Floats) -> Floats:
    """The mean of the finite values over the first axis; NaN where there is none."""
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        mean: Floats = np.where(finite, values, 0.0).sum(0) / finite.sum(0)
    return mean


def _gain(study: Study, arm: Arm, measured: dict[str, Measures], seed: int) -> Effect:
    """What a context adds to the log-odds that the words have anywhere.

    Taken unit by unit: a unit is asked at fewer places of other words than of its own, and units differ in their controls.
    """
    value_SM = values_of(arm, measured, TESTED, VIEWS.index("raw"))
    gain_SM = np.empty_like(value_SM)
    for value_M, gain_M in zip(value_SM, gain_SM, strict=True):
        elsewhere_M = study.shuffled_M & np.isfinite(value_M)
        units = study.unit_M[elsewhere_M]
        with np.errstate(invalid="ignore"):
            anywhere_U = np.bincount(units, value_M[elsewhere_M], len(study.units)) / np.bincount(
                units, minlength=len(study.units)
            )
        gain_M[:] = value_M - anywhere_U[study.unit_M]
    return effect(study, gain_SM, ~study.shuffled_M, seed)


def _p_value(value_P: Floats) -> float:
    """Of Wilcoxon's signed-rank test; NaN without values, which is not evidence of equality."""
    return signed_rank(value_P) if np.isfinite(value_P).any() else float("nan")


def _item_test(study: Study, difference_SM: Floats) -> ItemTest:
    asked_M = ~study.shuffled_M
    difference_M = finite_mean(difference_SM)
    item_M = study.item_M
    p_P, lowest_P = np.full((2, len(study.items)), np.nan)
    for item in np.unique(item_M[asked_M]):
        value_Q = difference_M[asked_M & (item_M == item)]
        p_P[item], lowest_P[item] = _p_value(value_Q), _p_value(np.abs(value_Q))
    return ItemTest(item_means(study, difference_M, asked_M), p_P, holm(p_P), lowest_P)

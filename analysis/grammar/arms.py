"""Arms against each other where the truth is known: means, paired differences, their intervals and tests.

Shapes: M members of an arm, D documents, S sets, L lemmas, Q (member, document, lemma) cells, K views of metrics.

A cell's value is its mean, its weight the number of times that its sets are expected to come, the same for every model:
the difference of two weighted means is then the weighted mean of the differences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from analysis.compare.arms import Arm, Member
from analysis.compare.metric import VIEWS
from analysis.compare.statistics import Effect, crossed_bootstraps, signed_rank
from data.grammar import SynonymSet

from .contexts import Floats
from .truth import KINDS, SET_METRICS, TEXT_METRICS, TRUE_KINDS, Scores

SYNONYMS = "synonyms"
SCOPES: dict[str, tuple[str, ...]] = {SYNONYMS: TRUE_KINDS} | {kind: (kind,) for kind in KINDS}
"""What is reported together: all true synonyms, then each kind."""


@dataclass(frozen=True)
class Table:
    """What is known of one arm, or of its difference to the baseline; keys are views, scopes and metrics."""

    text: dict[str, dict[str, Effect]]
    sets: dict[str, dict[str, dict[str, Effect]]]
    wilcoxon: dict[str, dict[str, dict[str, float]]]
    """Of differences: p of Wilcoxon's signed-rank test over the lemmas' mean differences."""


def arm_table(
    arm: Arm,
    scores: dict[str, Scores],
    sets: Sequence[SynonymSet],
    *,
    seed: int,
    baseline: Arm | None = None,
    progress: Callable[[], object] = lambda: None,
) -> Table:
    """The means of an arm over its members or, with ``baseline``, of its members minus those of the same seed there.

    A member whose seed the baseline does not have is held against the mean of the baseline's. ``scores`` are by member
    label; ``progress`` is called once for the text and once for each of SCOPES.
    """
    pairs = paired(arm, scores, baseline)
    progress()
    table = Table(effects_of_text(pairs, seed), {view: {} for view in VIEWS}, {})
    for scope, kinds in SCOPES.items():
        progress()
        found = effects_of_sets(pairs, sets, kinds, seed)
        for view, row in found.items():
            table.sets[view][scope] = {key: effect for key, (effect, _) in row.items()}
            if baseline:
                table.wilcoxon.setdefault(view, {})[scope] = {key: p for key, (_, p) in row.items()}
    return table


Pairs = Sequence[tuple[Scores, Sequence[Scores]]]
"""The scores of each member and those that it is held against, if any."""


def paired(arm: Arm, scores: dict[str, Scores], baseline: Arm | None = None) -> Pairs:
    """Each member with the baseline's of its seed, or with all of the baseline's if it has none of that seed."""
    return [
        (scores[member.label], [scores[label] for label in _counterparts(baseline, member)]) for member in arm.members
    ]


def effects_of_text(pairs: Pairs, seed: int) -> dict[str, dict[str, Effect]]:
    """[view][metric of TEXT_METRICS]: the metric, or its difference: the mean per token, its interval over documents and
    seeds."""
    places = [(x, view, metric.key) for x, view in enumerate(VIEWS) for metric in TEXT_METRICS]
    value_KMD = np.stack([_values(pairs, partial(_text_means, key=key, view=x)) for x, _, key in places])
    _, members, documents = value_KMD.shape
    effects = crossed_bootstraps(
        value_KMD.reshape(len(places), -1),
        {"document": np.tile(pairs[0][0].document_D, members), "seed": np.repeat(np.arange(members), documents)},
        weight_MQ=np.tile(pairs[0][0].position_D, (len(places), members)),
        seed=seed,
        units=("document",),
    )
    found: dict[str, dict[str, Effect]] = {view: {} for view in VIEWS}
    for (_, view, key), effect in zip(places, effects, strict=True):
        found[view][key] = effect
    return found


def effects_of_sets(
    pairs: Pairs, sets: Sequence[SynonymSet], kinds: Sequence[str], seed: int
) -> dict[str, dict[str, tuple[Effect, float]]]:
    """[view][metric of SET_METRICS]: the metric, or its difference, on the sets of some kinds: the mean per occurrence, its
    interval over lemmas, documents and seeds, and p of Wilcoxon's test that the lemmas' means are symmetric about zero."""
    places = [(x, view, metric.key) for x, view in enumerate(VIEWS) for metric in SET_METRICS]
    member_SL = _lemmas(sets, kinds)
    weight_KDL = np.stack([pairs[0][0].weight_DS(key) @ member_SL for _, _, key in places])
    value_KMDL = np.stack(
        [
            _values(pairs, partial(_set_means, key=key, view=x, member_SL=member_SL, weight_DL=weight_DL))
            for (x, _, key), weight_DL in zip(places, weight_KDL, strict=True)
        ]
    )
    weight_KMDL = np.broadcast_to(weight_KDL[:, None], value_KMDL.shape)
    seed_Q, document_Q, lemma_Q = (index_MDL.ravel() for index_MDL in np.indices(value_KMDL.shape[1:]))
    effects = crossed_bootstraps(
        value_KMDL.reshape(len(places), -1),
        {"lemma": lemma_Q, "document": document_Q, "seed": seed_Q},
        weight_MQ=weight_KMDL.reshape(len(places), -1),
        seed=seed,
        units=("lemma", "document"),
    )
    found: dict[str, dict[str, tuple[Effect, float]]] = {view: {} for view in VIEWS}
    for (_, view, key), effect, value_MDL, weight_MDL in zip(places, effects, value_KMDL, weight_KMDL, strict=True):
        found[view][key] = effect, signed_rank(_lemma_means(value_MDL, weight_MDL))
    return found


def set_means(scores: Sequence[Scores], key: str, view: int) -> Floats:
    """(S,): the metric of each set over all documents and members; NaN for a set that never can come."""
    value_S = np.sum([one.of_sets[key][view].sum(axis=0) for one in scores], axis=0)
    return _ratio(value_S, np.sum([one.weight_DS(key).sum(axis=0) for one in scores], axis=0))


def scope_mean(scores: Scores, sets: Sequence[SynonymSet], key: str, view: int, kinds: Sequence[str]) -> float:
    """The metric over all documents and all sets of some kinds, of one member."""
    chosen_S = np.array([one.kind in kinds for one in sets])
    value, weight = scores.of_sets[key][view][:, chosen_S].sum(), scores.weight_DS(key)[:, chosen_S].sum()
    return float(value / weight) if weight else float("nan")


def _counterparts(baseline: Arm | None, member: Member) -> list[str]:
    if baseline is None:
        return []
    same = [other.label for other in baseline.members if other.seed == member.seed and other.seed is not None]
    return same or [other.label for other in baseline.members]


def _lemmas(sets: Sequence[SynonymSet], kinds: Sequence[str]) -> Floats:
    """(S, L): 1 where a set belongs to a lemma of these kinds: all inflected forms together."""
    lemmas = list(dict.fromkeys(one.lemma for one in sets if one.kind in kinds))
    return np.array([[one.lemma == lemma and one.kind in kinds for lemma in lemmas] for one in sets], dtype=np.float64)


def _text_means(one: Scores, *, key: str, view: int) -> Floats:
    """(D,): a metric of the text, per token."""
    mean_D: Floats = one.of_text[key][view] / one.position_D
    return mean_D


def _set_means(one: Scores, *, key: str, view: int, member_SL: Floats, weight_DL: Floats) -> Floats:
    """(D, L): a metric of the sets of each lemma, per occurrence."""
    return _ratio(one.of_sets[key][view] @ member_SL, weight_DL)


def _lemma_means(value_MDL: Floats, weight_MDL: Floats) -> Floats:
    """(L,): the weighted mean of the finite cells of each lemma."""
    counted = np.isfinite(value_MDL)
    value_MDL, weight_MDL = np.where(counted, value_MDL, 0.0), np.where(counted, weight_MDL, 0.0)
    return _ratio((value_MDL * weight_MDL).sum(axis=(0, 1)), weight_MDL.sum(axis=(0, 1)))


def _values(pairs: Pairs, value_of: Callable[[Scores], Floats]) -> Floats:
    """(M, ...): of each member the value minus the mean of those that it is held against, if there are any."""
    return np.stack(
        [
            value_of(one) - np.mean([value_of(other) for other in others], axis=0) if others else value_of(one)
            for one, others in pairs
        ]
    )


def _ratio(value: npt.ArrayLike, weight: npt.ArrayLike) -> Floats:
    """The quotient, NaN where the weight is 0."""
    weight = np.asarray(weight, dtype=np.float64)
    return np.asarray(value, dtype=np.float64) / np.where(weight > 0, weight, np.nan)

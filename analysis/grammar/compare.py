"""Arms against each other where the truth is known: means, paired differences with intervals and tests, and checkpoints.

Shapes: M members of an arm, D documents, S sets, L lemmas, Q (member, document, lemma) cells, K metrics of all views.

A cell's value is its mean, its weight the expected number of occurrences of its sets, which is the same for every model: the
difference of two weighted means is then the weighted mean of the differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from tqdm import tqdm

from analysis.compare.arms import Arm, Diverged, Member, member_values
from analysis.compare.metric import tfsd_weight
from analysis.compare.statistics import Effect, Floats, crossed_bootstraps, ratio, signed_rank
from analysis.compare.temperature import VIEWS, VIEWS_OVER_TRAINING, matched_entropy
from analysis.probes.over_training import points_of
from data.grammar import SynonymSet

from .study import Study, predictor
from .truth import CONTROL_KINDS, KINDS, SET_METRICS, TEXT_METRICS, TRUE_KINDS, Scores, TruthCalibration, evaluate

SYNONYMS = "synonyms"
SCOPES: dict[str, tuple[str, ...]] = {SYNONYMS: TRUE_KINDS} | {kind: (kind,) for kind in KINDS}
"""Kinds that are reported together: all true synonyms, then each kind."""
TRAINING_DOCUMENTS = 100
"""Documents on which each checkpoint is evaluated."""
AllScores = Mapping[str, Scores]
"""By member label."""


@dataclass(frozen=True)
class Table:
    """The effects of one arm, or of its difference from the baseline; keys are views, scopes and metrics."""

    text: dict[str, dict[str, Effect]]
    sets: dict[str, dict[str, dict[str, Effect]]]
    wilcoxon: dict[str, dict[str, dict[str, float]]]
    """p of Wilcoxon's signed-rank test that the lemmas' means are symmetric about zero."""


@dataclass(frozen=True)
class Result:
    """The results of all models, and of the comparison of arms; the baseline is the first arm."""

    study: Study
    arms: tuple[Arm, ...]
    scores: AllScores
    temperatures: dict[str, dict[str, float]]
    """By member label and view."""
    tables: dict[str, Table]
    """By arm label."""
    differences: dict[str, Table]
    """Candidate minus baseline, by the candidate's label."""
    weights: dict[str, dict[str, float]]
    """By label of the members that log the weight c of TFSD."""


def compare(study: Study, arms: Sequence[Arm], *, seed: int) -> Result:
    """Evaluate every model and compare the arms with the first."""
    members = [member for arm in arms for member in arm.members]
    entropies: dict[int | None, float] = {}  # of the baseline's members, by seed
    scores: dict[str, Scores] = {}
    temperatures: dict[str, dict[str, float]] = {}
    for member in tqdm(members, desc="models", unit="model"):
        predict = predictor(member, study)
        calibration = TruthCalibration(predict, study.grammar, study.calibration)
        entropy = None
        if member in arms[0].members:
            entropies[member.seed] = calibration.entropy()
        else:
            entropy = matched_entropy(entropies, member.seed)
        own = temperatures[member.label] = calibration.temperatures(entropy)
        scores[member.label] = evaluate(predict, study.grammar, study.evaluation, [own[view] for view in VIEWS])
    sets = study.grammar.sets
    bar = tqdm(arms, desc="intervals", unit="arm")
    return Result(
        study=study,
        arms=tuple(arms),
        scores=scores,
        temperatures=temperatures,
        tables={arm.label: arm_table(arm, scores, sets, seed=seed) for arm in bar},
        differences={arm.label: arm_table(arm, scores, sets, seed=seed, baseline=arms[0]) for arm in arms[1:]},
        weights={member.label: weight for member in members if (weight := tfsd_weight(member.run))},
    )


def arm_table(
    arm: Arm, scores: AllScores, sets: Sequence[SynonymSet], *, seed: int, baseline: Arm | None = None
) -> Table:
    """The means of an arm over its members or, with ``baseline``, of their paired differences."""
    text = effects_of_text(arm, scores, seed, baseline)
    table = Table(text, {view: {} for view in VIEWS}, {view: {} for view in VIEWS})
    for scope, kinds in SCOPES.items():
        for view, row in effects_of_sets(arm, scores, sets, kinds, seed, baseline).items():
            table.sets[view][scope] = {key: effect for key, (effect, _) in row.items()}
            table.wilcoxon[view][scope] = {key: p for key, (_, p) in row.items()}
    return table


def effects_of_text(
    arm: Arm, scores: AllScores, seed: int, baseline: Arm | None = None
) -> dict[str, dict[str, Effect]]:
    """[view][metric of TEXT_METRICS]: the mean per token, or its difference; its interval is over documents and seeds."""
    first = scores[arm.members[0].label]
    keys = [metric.key for metric in TEXT_METRICS]

    def values(x: int, key: str) -> Floats:
        return member_values(arm, lambda member: scores[member.label].of_text[key][x] / first.position_D, baseline)

    value_KMD = np.stack([values(x, key) for x in range(len(VIEWS)) for key in keys])
    metrics, members, documents = value_KMD.shape
    effects = crossed_bootstraps(
        value_KMD.reshape(metrics, -1),
        {"document": np.tile(first.document_D, members), "seed": np.repeat(np.arange(members), documents)},
        weight_MQ=np.tile(first.position_D, (metrics, members)),
        seed=seed,
        units=("document",),
    )
    found = iter(effects)
    return {view: {key: next(found) for key in keys} for view in VIEWS}


def effects_of_sets(
    arm: Arm,
    scores: AllScores,
    sets: Sequence[SynonymSet],
    kinds: Sequence[str],
    seed: int,
    baseline: Arm | None = None,
) -> dict[str, dict[str, tuple[Effect, float]]]:
    """[view][metric of SET_METRICS]: the mean per occurrence on the sets of some kinds, or its difference, and Wilcoxon's p.

    The interval is over lemmas, documents and seeds; p is that of the lemmas' means being symmetric about zero.
    """
    lemmas = list(dict.fromkeys(one.lemma for one in sets if one.kind in kinds))
    # All inflected forms of a lemma count together.
    lemma_SL = np.array([[one.kind in kinds and one.lemma == lemma for lemma in lemmas] for one in sets], dtype=float)
    keys = [metric.key for metric in SET_METRICS]
    weights = {key: scores[arm.members[0].label].weight_DS(key) @ lemma_SL for key in keys}

    def values(x: int, key: str) -> Floats:
        def of_member(member: Member) -> Floats:
            return ratio(scores[member.label].of_sets[key][x] @ lemma_SL, weights[key])

        return member_values(arm, of_member, baseline)

    value_KMDL = np.stack([values(x, key) for x in range(len(VIEWS)) for key in keys])
    weight_KDL = np.stack([weights[key] for _ in VIEWS for key in keys])
    weight_KMDL = np.broadcast_to(weight_KDL[:, None], value_KMDL.shape)
    seed_Q, document_Q, lemma_Q = (index_MDL.ravel() for index_MDL in np.indices(value_KMDL.shape[1:]))
    effects = crossed_bootstraps(
        value_KMDL.reshape(len(value_KMDL), -1),
        {"lemma": lemma_Q, "document": document_Q, "seed": seed_Q},
        weight_MQ=weight_KMDL.reshape(len(value_KMDL), -1),
        seed=seed,
        units=("lemma", "document"),
    )
    found = zip(effects, map(signed_rank, map(_lemma_means, value_KMDL, weight_KMDL)), strict=True)
    return {view: {key: next(found) for key in keys} for view in VIEWS}


def _lemma_means(value_MDL: Floats, weight_MDL: Floats) -> Floats:
    """(L,): the weighted mean of the finite cells of each lemma."""
    counted = np.isfinite(value_MDL)
    value_MDL, weight_MDL = np.where(counted, value_MDL, 0.0), np.where(counted, weight_MDL, 0.0)
    return ratio((value_MDL * weight_MDL).sum(axis=(0, 1)), weight_MDL.sum(axis=(0, 1)))


def set_means(scores: Sequence[Scores], key: str, view: int) -> Floats:
    """(S,): the metric of each set over all documents and members; NaN for a set that can never occur."""
    value_S = np.sum([one.of_sets[key][view].sum(axis=0) for one in scores], axis=0)
    return ratio(value_S, np.sum([one.weight_DS(key).sum(axis=0) for one in scores], axis=0))


def scope_mean(scores: Scores, sets: Sequence[SynonymSet], key: str, view: int, kinds: Sequence[str]) -> float:
    """The metric over all documents and all sets of some kinds, of one member."""
    chosen_S = np.array([one.kind in kinds for one in sets])
    return float(ratio(scores.of_sets[key][view][:, chosen_S].sum(), scores.weight_DS(key)[:, chosen_S].sum()))


def over_training(study: Study, arms: Sequence[Arm]) -> pd.DataFrame:
    """A row for each checkpoint and view, evaluated on the first documents of the study.

    Columns: arm, label, seed, step, tokens, view, diverged, temperature, KL, entropy, excess NLL and, of true synonyms and
    of controls, the split KL, log fracture and joint KL. Where ``diverged`` is true the checkpoint's logits are not finite,
    and its numbers are NaN.
    """
    few = replace(study, evaluation=study.evaluation.first(TRAINING_DOCUMENTS))
    points = [point for point in points_of(arms) if not point.member.untrained]
    rows = []
    for point in tqdm(points, desc="over training", unit="checkpoint"):
        which = {"arm": point.arm, "label": point.run, "seed": point.member.seed, "step": point.step}
        try:
            values = _evaluate(point.member, few)
        except Diverged:
            values = [{} for _ in VIEWS_OVER_TRAINING]
        rows += [
            {**which, "tokens": point.tokens, "view": view, "diverged": not found, **found}
            for view, found in zip(VIEWS_OVER_TRAINING, values, strict=True)
        ]
    return pd.DataFrame(rows)


def _evaluate(member: Member, study: Study) -> list[dict[str, float]]:
    """The values in each of VIEWS_OVER_TRAINING."""
    predict = predictor(member, study)
    temperatures = [1.0, TruthCalibration(predict, study.grammar, study.calibration).best()]
    scores = evaluate(predict, study.grammar, study.evaluation, temperatures)
    found = []
    for view, temperature in enumerate(temperatures):
        values = {"temperature": temperature}
        for key in ("kl", "entropy", "excess"):
            values[key] = float(scores.of_text[key][view].sum() / scores.position_D.sum())
        for suffix, kinds in (("", TRUE_KINDS), ("_control", CONTROL_KINDS)):
            for key in ("split_kl", "log_fracture", "joint_kl"):
                values[key + suffix] = scope_mean(scores, study.grammar.sets, key, view, kinds)
        found.append(values)
    return found

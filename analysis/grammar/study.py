"""Runs on the synonym grammar: which of them are compared, on which documents, and what is found.

Shapes: B rows, T positions, D documents, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from analysis.compare.arms import Arm, Member, load_member
from analysis.compare.metric import VIEWS, tfsd_weight
from common.errors import InputError
from configs.load import load_recorded
from data.corpora import DataConfig
from data.grammar import Grammar
from data.store import open_store

from .arms import SCOPES, Table, arm_table
from .contexts import Contexts, Ids, Predictor, TruthCalibration, contexts_of
from .truth import Scores, measure

CALIBRATION_DOCUMENTS = 40
"""Documents on which temperatures are found: 3,000 contexts, and no drawn word among what is fitted."""


@dataclass(frozen=True)
class Study:
    """What every model is asked."""

    grammar: Grammar
    data: DataConfig
    measured: Contexts
    calibration: Contexts
    """Other documents than those measured."""


@dataclass(frozen=True)
class Result:
    """What was found; the baseline is the first arm."""

    study: Study
    arms: tuple[Arm, ...]
    scores: dict[str, Scores]
    """By member label."""
    temperatures: dict[str, dict[str, float]]
    """By member label and view."""
    tables: dict[str, Table]
    """By arm label."""
    differences: dict[str, Table]
    """Candidate minus baseline, by the candidate's label."""
    weights: dict[str, dict[str, float]]
    """By label of those members that log the weight c of TFSD."""


# ------------------------------------------------------------------------------------------------------ what is compared


def plan(arms: Sequence[Arm], *, documents: int, seed: int) -> Study:
    """Open the runs' data and draw documents. Raises :class:`InputError` unless all runs are of one store of the grammar."""
    members = [member for arm in arms for member in arm.members]
    found = {member.label: load_recorded(_run(member)).data for member in members}
    data = _same_data(found)
    store = open_store(data)
    _check_stores(members, store.path.name)
    split = store.validation
    order = np.random.default_rng(seed).permutation(len(split.document_starts))
    aside = min(CALIBRATION_DOCUMENTS, len(order) // 4)
    if aside == 0:
        raise InputError(
            f"{store.path}: the validation split has only {len(order)} documents, too few to measure and to fit "
            "temperatures on others; raise data.documents or data.validation_fraction"
        )

    def contexts(chosen: Ids) -> Contexts:
        return contexts_of(split.ids, split.document_starts, np.sort(chosen), data.sequence_length, store.eos_id)

    return Study(Grammar(data.options["seed"]), data, contexts(order[aside:][:documents]), contexts(order[:aside]))


def _run(member: Member) -> Path:
    if member.run is None:
        raise InputError(f"{member.checkpoint} belongs to no run, whose config.yaml names the grammar; give a run")
    return member.run


def _same_data(found: dict[str, Any]) -> DataConfig:
    """The data of all runs. Raises :class:`InputError` for each run of another corpus."""
    problems = [
        f"{label}: data.kind is {data.kind}; only of the grammar is the truth known" for label, data in found.items()
        if data.kind != "grammar"
    ]  # fmt: skip
    if problems:
        raise InputError(*problems)
    (first, data), *others = found.items()
    for label, other in others:
        for key in ("seed", "documents", "validation_fraction", "sequence_length"):
            mine, yours = data.model_dump()[key], other.model_dump()[key]
            if mine != yours:
                problems.append(
                    f"{label}: data.{key} is {yours} and that of {first} is {mine}; compare runs on one corpus"
                )
    if problems:
        raise InputError(*problems)
    return data


def _check_stores(members: Sequence[Member], store: str) -> None:
    """Raise :class:`InputError` for each run that was trained on another store than its configuration leads to now."""
    problems = []
    for member in members:
        path = _run(member) / "environment.json"
        try:
            trained_on = json.loads(path.read_text(encoding="utf-8"))["data"]["store"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} does not say which store the run read; restore the file or start it again"
            ) from error
        if trained_on != store:
            problems.append(
                f"{member.label} was trained on the store {trained_on}, and the grammar's rules now give {store}: its truth "
                "is no longer known; start the run again"
            )
    if problems:
        raise InputError(*problems)


# ---------------------------------------------------------------------------------------------------------- measurement


def compare(study: Study, arms: Sequence[Arm], *, seed: int) -> Result:
    """Measure every model and compare the arms with the first."""
    members = [member for arm in arms for member in arm.members]
    entropies: dict[str, float] = {}  # of the baseline's members
    scores: dict[str, Scores] = {}
    temperatures: dict[str, dict[str, float]] = {}
    for member in tqdm(members, desc="models", unit="model"):
        predict = predictor(member, study)
        calibration = TruthCalibration.of(predict, study.grammar, study.calibration)
        if member in arms[0].members:
            entropies[member.label] = calibration.entropy()
            matched = 1.0
        else:
            same = [other.label for other in arms[0].members if other.seed == member.seed]
            matched = calibration.matching(float(np.mean([entropies[label] for label in same or entropies])))
        temperatures[member.label] = {"raw": 1.0, "fitted": calibration.best(), "matched": matched}
        scores[member.label] = measure(
            predict, study.grammar, study.measured, [temperatures[member.label][view] for view in VIEWS]
        )
    with tqdm(total=(1 + len(SCOPES)) * (2 * len(arms) - 1), desc="intervals", unit="table") as bar:

        def table(arm: Arm, baseline: Arm | None = None) -> Table:
            return arm_table(arm, scores, study.grammar.sets, seed=seed, baseline=baseline, progress=bar.update)

        return Result(
            study=study,
            arms=tuple(arms),
            scores=scores,
            temperatures=temperatures,
            tables={arm.label: table(arm) for arm in arms},
            differences={arm.label: table(arm, arms[0]) for arm in arms[1:]},
            weights={member.label: weight for member in members if (weight := tfsd_weight(_run(member)))},
        )


def predictor(member: Member, study: Study) -> Predictor:
    """The model as a function of tokens. Raises :class:`InputError` if it cannot be loaded or asked; the function raises
    :class:`~analysis.compare.arms.Diverged`."""
    import torch

    from analysis.compare.arms import Diverged, check_positions

    model = load_member(member)
    vocabulary = len(study.grammar.words)
    check_positions(model, member.label, max(study.measured.x_DT.shape[1], study.calibration.x_DT.shape[1]))

    def predict(x_BT: Ids) -> Any:
        """(B, T, V): ln q of the grammar's words after each prefix, in float64."""
        with torch.inference_mode():
            logits_BTV = model(input_ids=torch.from_numpy(x_BT).to(model.device), use_cache=False).logits
            log_q_BTV = logits_BTV[..., :vocabulary].double().log_softmax(-1)
        if not bool(torch.isfinite(log_q_BTV).all()):
            raise Diverged(member.label)
        return log_q_BTV.cpu().numpy()

    return predict

"""The distance to the truth at every checkpoint of the runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
from tqdm import tqdm

from analysis.compare.arms import Arm, Diverged, Member
from analysis.compare.temperature import VIEWS_OVER_TRAINING
from analysis.probes.over_training import points_of

from .compare import scope_mean
from .contexts import TruthCalibration
from .study import Study, predictor
from .truth import CONTROL_KINDS, TRUE_KINDS, evaluate

TRAINING_DOCUMENTS = 100
"""Documents on which each checkpoint is measured."""


def over_training(study: Study, arms: Sequence[Arm]) -> pd.DataFrame:
    """A row for each checkpoint and view, measured on the first documents of the study.

    Columns: arm, label, seed, step, tokens, view, diverged, temperature, KL, entropy, excess NLL and, of true synonyms and
    of controls, the split KL, log fracture and joint KL. Where ``diverged`` is true the checkpoint's logits are not finite,
    and its numbers are NaN.
    """
    few = replace(study, measured=study.measured.first(TRAINING_DOCUMENTS))
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
    temperatures = [1.0, TruthCalibration.of(predict, study.grammar, study.calibration).best()]
    scores = evaluate(predict, study.grammar, study.measured, temperatures)
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

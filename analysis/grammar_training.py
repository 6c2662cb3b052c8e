"""The distance to the truth at every checkpoint of the runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
from tqdm import tqdm

from .probing.arms import Arm, checkpoints_up_to
from .probing.truth import CONTROL_KINDS, TRUE_KINDS, Scores, measure
from .probing.truth_arms import scope_mean
from .probing.truth_contexts import TruthCalibration
from .probing.truth_study import Study, predictor
from .probing.views import OVER_TRAINING
from .runs import read_config

TRAINING_DOCUMENTS = 100
"""Documents on which each checkpoint is measured."""
_OF_SETS = ("split_kl", "log_fracture", "joint_kl")


def over_training(study: Study, arms: Sequence[Arm]) -> pd.DataFrame:
    """A row for each checkpoint and view: arm, label, seed, step, tokens, view, KL, entropy, temperature and, of true
    synonyms and of controls, the split KL, log fracture and joint KL. Only the first documents are measured.

    Raises :class:`InputError` for a checkpoint that has diverged.
    """
    few = replace(study, measured=study.measured.first(TRAINING_DOCUMENTS))
    checkpoints = [
        (arm, member, step, path) for arm in arms for member in arm.members for step, path in checkpoints_up_to(member)
    ]
    rows = []
    for arm, member, step, path in tqdm(checkpoints, desc="over training", unit="checkpoint"):
        assert member.run is not None, "the study was planned from runs"
        predict = predictor(replace(member, checkpoint=path), few)
        temperatures = [1.0, TruthCalibration.of(predict, few.grammar, few.calibration).best()]
        scores = measure(predict, few.grammar, few.measured, temperatures)
        config = read_config(member.run)
        tokens = step * config["train"]["batch_size"] * config["data"]["sequence_length"]
        place = {"arm": arm.label, "label": member.label, "seed": member.seed, "step": step, "tokens": tokens}
        rows += [
            place | {"view": view, "temperature": temperatures[x]} | _values(scores, few, x)
            for x, view in enumerate(OVER_TRAINING)
        ]
    return pd.DataFrame(rows)


def _values(scores: Scores, study: Study, view: int) -> dict[str, float]:
    found = {
        key: float(scores.of_text[key][view].sum() / scores.position_D.sum()) for key in ("kl", "entropy", "excess")
    }
    for suffix, kinds in (("", TRUE_KINDS), ("_control", CONTROL_KINDS)):
        found |= {key + suffix: scope_mean(scores, study.grammar.sets, key, view, kinds) for key in _OF_SETS}
    return found

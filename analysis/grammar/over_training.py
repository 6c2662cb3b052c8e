"""The distance to the truth at every checkpoint of the runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
from tqdm import tqdm

from analysis.compare.arms import Arm, Diverged, checkpoints_up_to
from analysis.compare.metric import OVER_TRAINING
from record.finished import read_config

from .arms import scope_mean
from .contexts import Predictor, TruthCalibration
from .study import Study, predictor
from .truth import CONTROL_KINDS, TRUE_KINDS, Scores, measure

TRAINING_DOCUMENTS = 100
"""Documents on which each checkpoint is measured."""
_OF_SETS = ("split_kl", "log_fracture", "joint_kl")


def over_training(study: Study, arms: Sequence[Arm]) -> pd.DataFrame:
    """A row for each checkpoint and view: arm, label, seed, step, tokens, view, KL, entropy, temperature and, of true
    synonyms and of controls, the split KL, log fracture and joint KL. Only the first documents are measured. Where
    ``diverged`` is true the checkpoint's logits are not finite, and its numbers are NaN.
    """
    few = replace(study, measured=study.measured.first(TRAINING_DOCUMENTS))
    checkpoints = [
        (arm, member, step, path) for arm in arms for member in arm.members for step, path in checkpoints_up_to(member)
    ]
    rows = []
    for arm, member, step, path in tqdm(checkpoints, desc="over training", unit="checkpoint"):
        assert member.run is not None, "the study was planned from runs"
        values = _measured(predictor(replace(member, checkpoint=path), few), few)
        config = read_config(member.run)
        tokens = step * config["train"]["batch_size"] * config["data"]["sequence_length"]
        place = {"arm": arm.label, "label": member.label, "seed": member.seed, "step": step, "tokens": tokens}
        rows += [
            place | {"view": view, "diverged": values is None} | (values[x] if values else {})
            for x, view in enumerate(OVER_TRAINING)
        ]
    return pd.DataFrame(rows)


def diverged_lines(training: pd.DataFrame) -> list[str]:
    """A line for each checkpoint that has no values."""
    broken = training[training["diverged"]].drop_duplicates(["label", "step"])
    return [
        f"{row.label} step {row.step} ({row.tokens:,} tokens) has diverged: its logits are not finite; it has no values"
        for row in broken.itertuples()
    ]


def _measured(predict: Predictor, study: Study) -> list[dict[str, float]] | None:
    """The values in each view of OVER_TRAINING; None of a model that has diverged."""
    try:
        temperatures = [1.0, TruthCalibration.of(predict, study.grammar, study.calibration).best()]
        scores = measure(predict, study.grammar, study.measured, temperatures)
    except Diverged:
        return None
    return [{"temperature": temperatures[x]} | _values(scores, study, x) for x in range(len(OVER_TRAINING))]


def _values(scores: Scores, study: Study, view: int) -> dict[str, float]:
    found = {
        key: float(scores.of_text[key][view].sum() / scores.position_D.sum()) for key in ("kl", "entropy", "excess")
    }
    for suffix, kinds in (("", TRUE_KINDS), ("_control", CONTROL_KINDS)):
        found |= {key + suffix: scope_mean(scores, study.grammar.sets, key, view, kinds) for key in _OF_SETS}
    return found

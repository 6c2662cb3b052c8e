"""Vanishing gradient at the target: TFSD's gradient fades as a hidden state nears its token's embedding."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from analysis.compare.ranking import rank_correlation
from analysis.stability.compare import COMMON, Study
from record.finished import Run

from .base import CLAIMS, Claim, Evidence, against_number, deciding, place, runs_at, tested_arms, without_effect
from .probed import Probed

WEIGHT, NLL = "tfsd/weight_mean", "loss/nll"
CONSTANT = 1e-3
"""Range of the weight over a run up to which it does not vary."""


@CLAIMS.register("vanishing_gradient")
class VanishingGradient(Claim):
    """TFSD's gradient is cross-entropy's times a weight c; does c fall as the predictions improve?"""

    says = "The gradient vanishes where the target is reached, so that what is learnt is no longer pushed."
    test = (
        "rank correlation of the weight c with the NLL, over a run's steps and, where the adaptive probe has measured it, over "
        "held-out tokens at the end: supported if positive (c falls as the NLL falls), refuted if negative (c is smallest where "
        "nothing is predicted yet); not shown where c does not vary"
    )
    probe = "adaptive"

    def evidence(self, study: Study) -> Iterator[Evidence]:
        scenario = study.comparison.calm
        for arm in tested_arms(study):
            runs = runs_at(study, arm, scenario, COMMON)
            found = {seed: correlation(run) for seed, run in runs.items()}
            values = {seed: value for seed, value in found.items() if value is not None}
            what = "rank correlation of c with the NLL over the steps of a run"
            one = against_number(
                what, values, 0.0, arm, place(scenario, COMMON), "higher", decides=deciding(study, arm)
            )
            weights = [float(run.series(WEIGHT).mean()) for run in runs.values() if len(run.series(WEIGHT))]
            if weights and not values:
                one = without_effect(one, f"c does not vary: {np.mean(weights):.3f} at every step")
            yield one
            if (probed := Probed(study, self.probe)).file.is_file():
                what, decides = "rank correlation of c with the NLL over tokens", deciding(study, arm)
                yield probed.against_number(what, "weight_difficulty_rank", 0.0, arm, "higher", decides=decides)


def correlation(run: Run) -> float | None:
    """The rank correlation of c with the NLL over the steps of a run; None if c does not vary or is not on record."""
    weight, nll = run.series(WEIGHT), run.series(NLL)
    steps = weight.index.intersection(nll.index)
    pair_S2 = np.stack([weight[steps].to_numpy(), nll[steps].to_numpy()], axis=1)
    pair_S2 = pair_S2[np.isfinite(pair_S2).all(axis=1)]
    if len(pair_S2) < 3:
        return None
    found = rank_correlation(pair_S2[:, 0], pair_S2[:, 1], CONSTANT)
    return None if math.isnan(found) else found

"""No radial explosion: norms do not grow as they do with a linear head and cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Iterator

from analysis.stability.compare import Study
from analysis.stability.measure import PLACES

from .base import CLAIMS, Claim, Evidence, against_baseline, deciding, place, tested_arms

DECIDES = "residual"
"""The place where the article looks: hidden states, which are pinned after the last normalisation, so before it."""


@CLAIMS.register("radial_explosion")
class RadialExplosion(Claim):
    """Growth over training at the four places where a pre-norm transformer can grow."""

    says = "Distances instead of inner products end the growth of the hidden states' norms."
    test = (
        "the logarithm of last over first, minus the baseline's: supported if the residual stream before the last normalisation "
        "grows less, refuted if it grows more; the gain, the output embeddings and the logits have rows of their own"
    )

    def evidence(self, study: Study) -> Iterator[Evidence]:
        scenario = study.comparison.calm
        for arm in tested_arms(study):
            told: dict[str, object] = {}
            for basis in study.bases(scenario)[:2]:
                for name, (_, what) in PLACES.items():
                    values = {
                        each: {s: _log(v) for s, v in study.on(basis, f"{name}_growth", each, scenario).items()}
                        for each in (arm, study.comparison.baseline)
                    }
                    if told.setdefault(name, values) == values and basis != study.bases(scenario)[0]:
                        continue  # its own best rate is the baseline's: one test, not two
                    decides = name == DECIDES and deciding(study, arm)
                    label = f"{what}: log of last over first"
                    yield against_baseline(study, label, values, arm, place(scenario, basis), "lower", decides=decides)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else math.nan

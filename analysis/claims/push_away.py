"""Push-away tightens the cells: training on negatives makes room around each embedding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from analysis.compare.differing import differing
from analysis.stability.compare import Study
from analysis.stability.fairness import compared_configs

from .base import CLAIMS, Evidence
from .probed import Probed, ProbedClaim

OTHER = ("train.batch_size", "train.micro_batch_size")
"""Keys in which, beside the negatives and the learning rate, the arm without them may be another."""


@CLAIMS.register("push_away")
class PushAway(ProbedClaim):
    """The distance of hidden states to their token's embedding over that to the nearest other one."""

    says = "Pushing negatives away from the embeddings tightens the cells: known text lies nearer to its tokens."
    test = (
        "median over held-out tokens of the distance to the target's embedding over that to the nearest other, of arms trained "
        "with the hinge on negatives, minus the same arm's without negatives: supported if lower, refuted if higher"
    )
    probe = "geometry"
    lacks = "no arm has negatives with the hinge beside one that is the same without them"

    def arms(self, study: Study) -> list[str]:
        return [arm for arm in study.comparison.compared if without_negatives(study, arm)]

    def judged(self, study: Study, probed: Probed) -> Iterator[Evidence]:
        pairs = {arm: partner for arm in self.arms(study) if (partner := without_negatives(study, arm))}
        for arm, partner in pairs.items():
            what = "distance to the target's embedding over that to the nearest other"
            yield probed.against_arm(what, ("cell_ratio", "cell_ratio"), arm, partner, "lower", decides=True)


def without_negatives(study: Study, arm: str) -> str | None:
    """The arm that lacks nothing but the negatives of this one, which trains on them with the hinge; of several the one whose
    batches have as many other sequences."""
    configs = compared_configs(study.comparison)
    own = configs.get(arm, {})
    negatives = own.get("negatives")
    if not isinstance(negatives, dict) or negatives.get("loss") != "hinge":
        return None
    alike = {other: config for other, config in configs.items() if not config.get("negatives") and _same(own, config)}
    left = own["train"]["batch_size"] * (1 - negatives["share"])
    return min(alike, key=lambda other: abs(alike[other]["train"]["batch_size"] - left), default=None)


def _same(own: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether they are, but for what is not compared."""
    return not differing([{**config, "negatives": None} for config in (own, other)]).keys() - {*OTHER}

"""An adaptive curriculum: what is hard gets a softer target."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.stability.compare import Study

from .base import CLAIMS, Evidence, deciding, tested_arms
from .probed import Probed, ProbedClaim, with_objective

RANK = "entropy_difficulty_rank"


@CLAIMS.register("adaptive_curriculum")
class AdaptiveCurriculum(ProbedClaim):
    """The rank correlation over tokens of the entropy of TFSD's target with the NLL."""

    says = "The target softens for tokens that are hard to predict, and sharpens as they are learnt: a curriculum of its own."
    test = (
        "rank correlation over held-out tokens of the entropy of TFSD's target with the token's NLL, minus that of the arm "
        "which has cross-entropy on the same head: supported if higher, refuted if lower; without such an arm, if positive or "
        "negative. Beside it the correlation itself, and the share of cross-entropy's gradient that TFSD keeps, against all of "
        "it: what is left for a curriculum to change"
    )
    probe = "adaptive"

    def judged(self, study: Study, probed: Probed) -> Iterator[Evidence]:
        for arm in tested_arms(study):
            what, decides = "rank correlation of H(Q) and NLL", deciding(study, arm)
            if (partner := with_objective(study, arm, "ce")) is not None:
                yield probed.against_arm(
                    f"{what}, against cross-entropy's", (RANK, RANK), arm, partner, "higher", decides=decides
                )
            yield probed.against_number(what, RANK, 0.0, arm, "higher", decides=decides and partner is None)
            what = "share of cross-entropy's gradient that is kept"
            yield probed.against_number(what, "gradient_kept", 1.0, arm, "lower", decides=False)

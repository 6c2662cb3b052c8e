"""An adaptive curriculum: what is hard gets a softer target."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.stability.compare import Study

from .base import CLAIMS, Evidence, deciding, tested_arms
from .probed import Probed, ProbedClaim


@CLAIMS.register("adaptive_curriculum")
class AdaptiveCurriculum(ProbedClaim):
    """The rank correlation over tokens of the entropy of TFSD's target with the NLL."""

    says = "The target softens for tokens that are hard to predict, and sharpens as they are learnt: a curriculum of its own."
    test = (
        "rank correlation over held-out tokens of the entropy of TFSD's target with the token's NLL: supported if positive, "
        "refuted if negative. Beside it the share of cross-entropy's gradient that TFSD keeps, against all of it: what is left "
        "for a curriculum to change"
    )
    probe = "adaptive"

    def judged(self, study: Study, probed: Probed) -> Iterator[Evidence]:
        for arm in tested_arms(study):
            what, decides = "rank correlation of H(Q) and NLL", deciding(study, arm)
            yield probed.against_number(what, "entropy_difficulty_rank", 0.0, arm, "higher", decides=decides)
            what = "share of cross-entropy's gradient that is kept"
            yield probed.against_number(what, "gradient_kept", 1.0, arm, "lower", decides=False)

"""Far means unknown: the distance to the nearest embedding tells what the model does not know."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.stability.compare import Study

from .base import CLAIMS, Evidence, deciding, tested_arms
from .probed import Probed, ProbedClaim

CHANCE = 0.5
UNKNOWN = {"random": "random tokens", "shuffled": "shuffled text"}


@CLAIMS.register("far_means_unknown")
class FarMeansUnknown(ProbedClaim):
    """The area under the ROC curve of the distance, against the baseline's own largest probability."""

    says = "A hidden state far from every embedding is unknown to the model, which so knows what it does not know."
    test = (
        "area under the ROC curve by which the distance to the nearest embedding tells random tokens and shuffled text from "
        "held-out text, minus what the baseline's largest probability reaches: supported if higher, refuted if lower. Beside it "
        "the same against chance, and whether far means unsure: the rank correlation of distance and entropy"
    )
    probe = "uncertainty"

    def judged(self, study: Study, probed: Probed) -> Iterator[Evidence]:
        base = study.comparison.baseline
        for arm in tested_arms(study):
            for key, text in UNKNOWN.items():
                keys = (f"auroc_distance_{key}", f"auroc_probability_{key}")
                what, decides = f"AUROC, {text}: distance against the baseline's probability", deciding(study, arm)
                yield probed.against_arm(what, keys, arm, base, "higher", decides=decides)
                what = f"AUROC of the distance, {text}, against chance"
                yield probed.against_number(what, keys[0], CHANCE, arm, "higher", decides=False)
            what = "rank correlation of distance and entropy"
            yield probed.against_number(what, "distance_entropy_rank", 0.0, arm, "higher", decides=False)

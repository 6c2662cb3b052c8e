"""Synonym tolerance: what is meant by the right word may also be said by another."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.stability.compare import Study

from .base import CLAIMS, Evidence, deciding, tested_arms
from .probed import TOLERANCE, Probed, ProbedClaim

RANK, ODDS = "auc", "log_odds_fitted"


@CLAIMS.register("synonym_tolerance")
class SynonymTolerance(ProbedClaim):
    """How often a synonym of the next word is more probable than control words as frequent as it."""

    says = (
        "TFSD leaves the synonyms of the target their probability, where cross-entropy pushes every other token away."
    )
    test = (
        "rank AUC of synonyms among control words of the same frequency (docs/synonyms.md), minus the baseline's: supported if "
        "higher, refuted if lower; a flatter softmax does not move it. The log-odds of synonyms to controls at each model's best "
        "temperature stand beside it"
    )
    probe = TOLERANCE

    def judged(self, study: Study, probed: Probed) -> Iterator[Evidence]:
        for arm in tested_arms(study):
            decides = deciding(study, arm)
            yield probed.against_baseline("rank AUC of synonyms", RANK, arm, "higher", decides=decides)
            what = "log-odds of synonyms to controls, nats"
            yield probed.against_baseline(what, ODDS, arm, "higher", decides=False)

"""No semantic fracturing: the embeddings of synonyms stay near each other."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.stability.compare import Study

from .base import CLAIMS, Evidence, deciding, tested_arms
from .probed import Probed, ProbedClaim


@CLAIMS.register("semantic_fracturing")
class SemanticFracturing(ProbedClaim):
    """The distance between the embeddings of synonyms, as a multiple of that between other words as frequent."""

    says = "Cross-entropy drives the embeddings of synonyms apart, each being wrong where the other is right; TFSD does not."
    test = (
        "mean distance between the output embeddings of synonyms over that of word pairs of the same frequencies, minus the "
        "baseline's: supported if lower, refuted if higher; only words that are single tokens have an embedding"
    )
    probe = "geometry"

    def judged(self, study: Study, probed: Probed) -> Iterator[Evidence]:
        for arm in tested_arms(study):
            what = "distance of synonyms' embeddings over that of others"
            yield probed.against_baseline(what, "synonym_ratio", arm, "lower", decides=deciding(study, arm))

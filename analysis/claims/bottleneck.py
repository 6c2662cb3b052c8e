"""The softmax bottleneck broken: log-probabilities of a higher rank than a linear head's."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.stability.compare import Study

from .base import CLAIMS, Evidence, Verdict, deciding, tested_arms
from .probed import Probed, ProbedClaim


@CLAIMS.register("bottleneck")
class Bottleneck(ProbedClaim):
    """The numerical rank of the log-probabilities over contexts, against what a linear head with a bias can have."""

    says = (
        "Distances break the softmax bottleneck, which caps the rank of a linear head's log-probabilities by the width."
    )
    test = (
        "numerical rank in float64 of the matrix of log-probabilities, contexts by tokens: refuted if no run's exceeds the "
        "width + 2, the bound of a linear head with a bias; supported if all do; not testable where there are no more contexts "
        "or tokens than that, or logits are capped. The mathematics leaves a metric head only the verdict refuted. Beside it "
        "the effective rank, minus the baseline's"
    )
    probe = "bottleneck"

    def judged(self, study: Study, probed: Probed) -> Iterator[Evidence]:
        for arm in tested_arms(study):
            rank, bound, largest = (probed.finite(key, arm) for key in ("rank", "bound", "largest"))
            above = [rank[seed] > bound[seed] for seed in rank if largest.get(seed, 0.0) > bound[seed]]
            fixed: Verdict = "not shown"
            if all(above):
                fixed = "supported" if above else "not testable here"
            elif not any(above):
                fixed = "refuted"
            ranks, most = sorted(set(rank.values())), max(bound.values(), default=0.0)
            told = f"rank {', '.join(f'{each:.0f}' for each in ranks)}; bound {most:.0f}"
            yield Evidence(
                "rank of the log-probabilities", arm, "width + 2", probed.where, told, deciding(study, arm), fixed=fixed
            )
            yield probed.against_baseline("effective rank", "effective_rank", arm, "higher", decides=False, form="+.2f")

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
        "width + 2, the bound of a linear head with a bias; supported if all do. Beside it the effective rank, minus the "
        "baseline's"
    )
    probe = "bottleneck"

    def judged(self, study: Study, probed: Probed) -> Iterator[Evidence]:
        for arm in tested_arms(study):
            ranks, bounds = (list(probed.finite(key, arm).values()) for key in ("rank", "bound"))
            above = sum(rank > bound for rank, bound in zip(ranks, bounds, strict=True))
            verdicts: dict[int, Verdict] = {0: "refuted", len(ranks): "supported"}
            fixed = verdicts.get(above, "not shown") if ranks else "not testable here"
            told = f"rank {', '.join(f'{rank:.0f}' for rank in sorted(set(ranks)))}; bound {max(bounds, default=0):.0f}"
            yield Evidence(
                "rank of the log-probabilities", arm, "width + 2", probed.where, told, deciding(study, arm), fixed=fixed
            )
            yield probed.against_baseline("effective rank", "effective_rank", arm, "higher", decides=False, form="+.2f")

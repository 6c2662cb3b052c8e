"""Dark knowledge used: the model learns from what it believes of the wrong answers."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.compare.seeds import paired
from analysis.stability.compare import OWN_BEST, PRIMARY, Study

from .base import CLAIMS, Evidence, Verdict, deciding, place, tested_arms
from .probed import Probed, ProbedClaim, with_objective

ROUNDING = 1e-6
"""Largest share of a gradient that rounding may turn out of its direction."""


@CLAIMS.register("dark_knowledge")
class DarkKnowledge(ProbedClaim):
    """The part of TFSD's gradient that is not cross-entropy's, up to its length."""

    says = "The model is its own teacher: its probabilities of the wrong tokens are part of the target, and so are learnt from."
    test = (
        "the part of TFSD's gradient at the logits that is orthogonal to cross-entropy's, as a share of its length, at the token "
        "where it is largest: refuted if it is rounding (below 1e-6) in every run, for then the gradient is cross-entropy's, "
        "weighted; supported if it is more in all. The mathematics leaves no other verdict than refuted: this is a check of it"
    )
    probe = "adaptive"

    def judged(self, study: Study, probed: Probed) -> Iterator[Evidence]:
        for arm in tested_arms(study):
            shares = list(probed.finite("dark_knowledge", arm).values())
            more = sum(share > ROUNDING for share in shares)
            verdicts: dict[int, Verdict] = {0: "refuted", len(shares): "supported"}
            fixed = verdicts.get(more, "not shown") if shares else "not testable here"
            told = f"at most {max(shares, default=0.0):.1e} in {len(shares)} runs"
            what = "share of the gradient that is not cross-entropy's"
            yield Evidence(what, arm, "0", probed.where, told, deciding(study, arm), fixed=fixed)
            if (weighted := with_objective(study, arm, "weighted_ce")) is not None:
                own, other = (study.at_own_best(PRIMARY, each, study.comparison.calm) for each in (arm, weighted))
                where, what = (
                    place(study.comparison.calm, OWN_BEST),
                    "final NLL, against cross-entropy with TFSD's weights",
                )
                effect = paired(own, other).effect.format("+.4f")
                yield Evidence(
                    what, arm, weighted, where, f"{arm} minus {weighted} {effect}", decides=False, fixed="told"
                )

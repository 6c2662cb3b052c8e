"""No temperature needed: at the article's scale the predictions are as sharp as they should be."""

from __future__ import annotations

import math
from collections.abc import Iterator

from analysis.compare.seeds import excludes, paired
from analysis.stability.compare import OWN_BEST, Study
from analysis.summary import tail
from record.finished import Run

from .base import (
    CLAIMS,
    Claim,
    Evidence,
    Verdict,
    at_article_scale,
    deciding,
    place,
    runs_at,
    tested_arms,
    unmeasured,
)

CALIBRATED = 0.05
"""Nats per token between entropy and NLL up to which predictions are as sharp as they should be."""


@CLAIMS.register("no_temperature")
class NoTemperature(Claim):
    """Entropy of the predictions minus their NLL: positive, they are too flat; negative, too sharp."""

    says = "With the article's scale g = 1/sqrt(8 D) the softmax over distances needs no temperature."
    test = (
        "entropy of P minus NLL over the last 5% of the steps: supported if its interval lies within ±0.05 nats, refuted if it "
        "lies outside; and the scale must not cost anything: the final NLL, each arm at its own best rate, minus the baseline's "
        "is supported if its interval ends below +0.05 nats, refuted if it begins above. Both intervals are of 95% and not "
        "adjusted for other tests"
    )

    def evidence(self, study: Study) -> Iterator[Evidence]:
        scenario = study.comparison.calm
        where = place(scenario, OWN_BEST)
        if not any(at_article_scale(study, arm) for arm in tested_arms(study)):
            yield unmeasured("scale", "no arm has the article's scale")
        for arm in tested_arms(study):
            gap = {seed: _gap(run) for seed, run in runs_at(study, arm, scenario, OWN_BEST).items()}
            difference = paired(gap, dict.fromkeys(gap, 0.0))
            effect = difference.effect
            fixed: Verdict = "not shown"
            if excludes(effect, CALIBRATED):
                fixed = "supported"
            elif (
                effect.low is not None
                and effect.high is not None
                and (effect.low > CALIBRATED or effect.high < -CALIBRATED)
            ):
                fixed = "refuted"
            decides = at_article_scale(study, arm) and deciding(study, arm)
            what = f"entropy minus NLL, nats per token; within ±{CALIBRATED}?"
            yield Evidence(what, arm, "0", where, f"{arm} {effect.format('+.3f')}", decides, difference, fixed=fixed)
            final, base = (study.on(OWN_BEST, "final_nll", each, scenario) for each in (arm, study.comparison.baseline))
            cost = paired(final, base, study.comparison.pairs(arm))
            low, high = cost.effect.low, cost.effect.high
            what = f"final NLL, nats per token; at most {CALIBRATED} above the baseline's?"
            told = f"{arm} minus {study.comparison.baseline} {cost.effect.format('+.3f')}"
            paid: Verdict = "not shown"
            if high is not None and high < CALIBRATED:
                paid = "supported"
            elif low is not None and low > CALIBRATED:
                paid = "refuted"
            yield Evidence(what, arm, study.comparison.baseline, where, told, decides, cost, fixed=paid)


def _gap(run: Run) -> float:
    entropy, nll = tail(run, "entropy/p"), tail(run, "loss/nll")
    return math.nan if entropy is None or nll is None else entropy - nll

"""Attainable zero loss: TFSD can be 0."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from analysis.compare.statistics import mean_over_seeds
from analysis.stability.compare import COMMON, Study

from .base import CLAIMS, Claim, Evidence, Verdict, deciding, place, runs_at, tested_arms

OBJECTIVE, NLL = "loss/objective", "loss/nll"
ZERO = 0.01
"""Nats per token below which the objective counts as zero."""


@CLAIMS.register("zero_loss")
class ZeroLoss(Claim):
    """Whether the objective comes near 0, and what is predicted there."""

    says = "TFSD's loss can reach 0, as cross-entropy's cannot, so training has an end to come to."
    test = (
        "supported if in every run at the baseline's best rate some step has an objective below 0.01 nats; what that is "
        "worth, the NLL of P at that step says, which is told beside the verdict and not judged: far above the run's lowest NLL, "
        "zero loss is not the end of learning"
    )

    def evidence(self, study: Study) -> Iterator[Evidence]:
        scenario = study.comparison.calm
        for arm in tested_arms(study):
            lowest, behind = {}, {}
            for seed, run in runs_at(study, arm, scenario, COMMON).items():
                objective, nll = (run.series(name) for name in (OBJECTIVE, NLL))
                if not len(objective) or not np.isfinite(objective.to_numpy()).any():
                    continue
                lowest[seed] = float(objective.min())
                behind[seed] = float(nll[objective.idxmin()] - nll.min())
            reached = sum(value < ZERO for value in lowest.values())
            told = "no run there has a finite objective"
            if lowest:
                told = f"below {ZERO} in {reached} of {len(lowest)} runs; the lowest is {min(lowest.values()):.4f}"
            fixed: Verdict = (
                "not testable here" if not lowest else "supported" if reached == len(lowest) else "not shown"
            )
            where, decides = place(scenario, COMMON), deciding(study, arm)
            above = mean_over_seeds(list(behind.values()))
            worth = f"NLL there {above.mean:.2f} nats above the lowest"
            yield Evidence("lowest objective of a step", arm, "0", where, told, decides, fixed=fixed, worth=worth)
            what = "NLL at that step above the run's lowest NLL, nats per token"
            yield Evidence(what, arm, "", where, f"{arm} {above.format('.3f')}", decides=False, fixed="told")

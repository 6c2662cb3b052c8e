"""No loss spikes, and no other instability."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from analysis.stability.compare import ALL_MEASURES, Study, spikes_per_step

from .base import CLAIMS, Claim, Evidence, Side, Verdict, against_baseline, deciding, tested_arms

MEASURES = {
    "spikes_nll": ("loss spikes per 1,000 steps", True),
    "survived": ("share of runs that neither diverge nor stall", False),
    "excess": ("nat-steps above the running minimum of the NLL, per run", False),
}
"""What is counted, in words, and whether it decides."""


@CLAIMS.register("loss_spikes")
class LossSpikes(Claim):
    """Spikes over all rates and scenarios that arm and baseline share."""

    says = "Training with TFSD on a metric head has no loss spikes."
    test = (
        "loss spikes by the default rule, per 1,000 steps, mean over all rates and stresses, minus the baseline's: supported if "
        "lower, refuted if higher; survival and nat-steps lost beside it, as a stalled run has no spikes either"
    )

    def evidence(self, study: Study) -> Iterator[Evidence]:
        for arm in tested_arms(study):
            for key, (what, decides) in MEASURES.items():
                values, counts = over_everything(study, key, arm), decides and deciding(study, arm)
                good: Side = "higher" if ALL_MEASURES[key].better == "higher" else "lower"
                yield against_baseline(study, what, values, arm, "all rates and scenarios", good, decides=counts)
            rate = spikes_per_step("nll", {cell: one for cell, one in study.measured.items() if cell.arm == arm})
            if rate is not None:
                told = f"{rate.events} in {rate.exposure:,.0f} steps: {1000 * rate.rate:.2f}"
                if not math.isnan(rate.low):
                    told += f" [{1000 * rate.low:.2f}, {1000 * rate.high:.2f}]"
                fixed: Verdict = "refuted" if rate.events else "not shown"
                yield Evidence(MEASURES["spikes_nll"][0], arm, "0", "all runs", told, decides=False, fixed=fixed)


def over_everything(study: Study, key: str, arm: str) -> dict[str, dict[int, float]]:
    """By arm and seed, the mean of a measure over the scenarios and rates at which arm and baseline both have a value with this
    seed."""
    base, one = study.comparison.baseline, study.comparison
    found: dict[str, dict[int, float]] = {arm: {}, base: {}}
    both = [
        (study.values(key, arm, scenario, rate), study.values(key, base, scenario, rate))
        for scenario in one.scenarios
        for rate in one.rates(arm, scenario)
    ]
    for seed in one.seeds(arm):
        pairs = [(own[seed], other[seed]) for own, other in both if seed in own and seed in other]
        if pairs:
            found[arm][seed], found[base][seed] = (float(np.mean(values)) for values in zip(*pairs, strict=True))
    return found

"""Bounded logits: no logit of a metric head is above 0."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from analysis.stability.compare import COMMON, Study
from record.finished import Run

from .base import CLAIMS, Claim, Evidence, Verdict, against_baseline, deciding, place, runs_at, tested_arms

MAX = "logit/max"
SPREAD = "logit/std"
ROUNDING = 1e-3
"""Nats above 0 that float32 may make of a distance of 0."""


@CLAIMS.register("bounded_logits")
class BoundedLogits(Claim):
    """The largest logit of every step of every run; beside it the growth of the logits' spread, which no bound holds."""

    says = "The logits of the metric head are bounded by 0, so they cannot explode."
    test = (
        "supported if no step of any run, at any rate and under any stress, has a logit above 0 (but for 0.001 nats of "
        "rounding): true by construction, so that only a fault of the code can refute it; that logits do not explode downwards "
        "is asked of their spread, whose growth over training is compared"
    )

    def evidence(self, study: Study) -> Iterator[Evidence]:
        for arm in tested_arms(study):
            runs = [run for cell, run in study.comparison.runs.items() if cell.arm == arm]
            highest = [value for run in runs if (value := largest(run)) is not None]
            above = sum(value > ROUNDING for value in highest)
            told = f"{above} of {len(highest)} runs have a logit above 0; the largest is {max(highest, default=np.nan):.3g}"
            fixed: Verdict = "not testable here" if not highest else "refuted" if above else "supported"
            decides, worth = deciding(study, arm), "true by construction"
            yield Evidence("largest logit", arm, "0", "all runs", told, decides, fixed=fixed, worth=worth)
            scenario = study.comparison.calm
            values = {
                each: {
                    seed: growth(run.series(SPREAD).to_numpy())
                    for seed, run in runs_at(study, each, scenario, COMMON).items()
                }
                for each in (arm, study.comparison.baseline)
            }
            what = "growth of the logits' standard deviation, log of last over first"
            yield against_baseline(study, what, values, arm, place(scenario, COMMON), "lower", decides=False)


def largest(run: Run) -> float | None:
    """The largest logit of all steps; None if it is on record at none, or NaN at each."""
    values = run.series(MAX).dropna()
    return float(values.max()) if len(values) else None


def growth(values: np.ndarray) -> float:
    """The logarithm of the last over the first positive finite value; NaN from fewer than two."""
    kept = values[np.isfinite(values) & (values > 0)]
    return float(np.log(kept[-1] / kept[0])) if len(kept) > 1 else float("nan")

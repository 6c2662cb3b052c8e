"""Capped outliers: a bad batch moves the model less."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from analysis.show.stresses import ACTING
from analysis.stability.compare import COMMON, Study
from record.finished import Run

from .base import CLAIMS, Claim, Evidence, Verdict, against_baseline, deciding, place, runs_at, tested_arms, unmeasured

BAD_BATCHES = ("corrupt_sequences", "label_noise", "foreign_text")
"""Stresses that spoil the batch."""
GRADIENT = "grad_norm/total"
USUAL = 4
"""Fewest steps before the stress from which the usual gradient is known."""


@CLAIMS.register("capped_outliers")
class CappedOutliers(Claim):
    """The gradient norm of a bad batch, as a multiple of the usual one of the same run."""

    says = "The objective caps what an outlier can do: a bad batch has no outsized gradient."
    test = (
        "the logarithm of the highest gradient norm while a stress spoils the batch over the median norm before it, minus the "
        "baseline's: supported if lower, refuted if higher, or if such a gradient is not finite in any run"
    )

    def evidence(self, study: Study) -> Iterator[Evidence]:
        if not any(map(is_spoilt, study.comparison.runs.values())):
            yield unmeasured("stress", f"no run has a stress that spoils a batch: {', '.join(BAD_BATCHES)}")
        for scenario in study.comparison.scenarios:
            for arm in tested_arms(study):
                runs = {each: measured(study, each, scenario) for each in (arm, study.comparison.baseline)}
                if not any(map(is_spoilt, runs[arm].values())):
                    continue
                values = {each: {seed: outlier(run) for seed, run in own.items()} for each, own in runs.items()}
                what = "gradient norm of the bad batches, log of a multiple of the usual"
                decides = deciding(study, arm)
                yield against_baseline(study, what, values, arm, place(scenario, COMMON), "lower", decides=decides)
                broken = {each: sum(map(not_finite, own.values())) for each, own in runs.items()}
                told = ", ".join(f"{each} {broken[each]} of {len(own)}" for each, own in runs.items())
                fixed: Verdict = "refuted" if broken[arm] else "supported"
                what = "runs in which the bad batches' gradient is not finite, which have no norm to compare"
                yield Evidence(
                    what, arm, study.comparison.baseline, place(scenario, COMMON), told, decides, fixed=fixed
                )


def measured(study: Study, arm: str, scenario: str) -> dict[int, Run]:
    """The runs of an arm that log their gradient norm, by seed."""
    runs = runs_at(study, arm, scenario, COMMON)
    return {seed: run for seed, run in runs.items() if len(run.series(GRADIENT))}


def is_spoilt(run: Run) -> bool:
    """Whether a stress spoils some of its batches."""
    return any(stress["kind"] in BAD_BATCHES for stress in run.config["stress"])


def not_finite(run: Run) -> bool:
    """Whether the gradient norm is not finite at a step at which a stress acts."""
    norm, acting = run.series(GRADIENT), run.series(ACTING)
    return not bool(np.isfinite(norm[norm.index.isin(acting.index[acting > 0])].to_numpy()).all())


def outlier(run: Run) -> float:
    """The logarithm of the highest gradient norm while a stress acts over the median before; NaN if it cannot be told."""
    norm, acting = run.series(GRADIENT), run.series(ACTING)
    steps = acting.index[acting > 0]
    if not len(steps):
        return math.nan
    before, during = norm[norm.index < steps[0]].to_numpy(), norm[norm.index.isin(steps)].to_numpy()
    if len(before) < USUAL or not np.isfinite(during).all() or not len(during):
        return math.nan
    return float(np.log(during.max() / np.median(before)))

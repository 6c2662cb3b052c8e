"""Shares and rates over runs with exact intervals, and exact tests of two shares.

All intervals are two-sided, 95%, unless they say that they are one-sided.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from .statistics import CONFIDENCE, mean_over_seeds

EXACT = "exact Poisson"
OVER_RUNS = "t over runs"
FEWEST_SEEDS = 3
"""Fewest seeds from which there is an interval where they have several runs each."""
MOST_FLIPPED = 12
"""Most differences of which all choices of signs are tried."""
_TAIL = (1 - CONFIDENCE) / 2


@dataclass(frozen=True)
class Proportion:
    """``k`` of ``n``, as a share with its interval; limits that cannot be given are NaN."""

    k: int
    n: int
    share: float
    """NaN if n is 0."""
    low: float
    high: float
    at_most: float
    """The one-sided 95% upper limit: 63% for 0 of 3, where ``high`` is 71%."""


@dataclass(frozen=True)
class Rate:
    """Events per unit of exposure, with an interval; limits that cannot be given are NaN."""

    events: int
    exposure: float
    rate: float
    low: float
    high: float
    at_most: float
    """The one-sided 95% upper limit: 3.0 / exposure after no event, where ``high`` is 3.7 / exposure."""
    runs: int
    dispersion: float | None
    """Variance of the runs' counts over what a Poisson distribution of the common rate gives: 1 if events are independent, more
    if they come in clusters or runs differ. None from a single run, or without an event."""
    method: str
    """EXACT, or OVER_RUNS where the counts are over-dispersed."""


def proportion(k: int, n: int) -> Proportion:
    """The share ``k`` of ``n`` with its exact (Clopper-Pearson) interval. Raises ValueError unless 0 <= k <= n."""
    from scipy.special import betaincinv

    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is no share")

    def upper(tail: float) -> float:
        return 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - tail))

    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, _TAIL))
    return Proportion(k, n, k / n if n else math.nan, low, upper(_TAIL), upper(2 * _TAIL))


def poisson_rate(events: npt.ArrayLike, exposure: npt.ArrayLike) -> Rate:
    """Events per unit of exposure (such as steps), with an interval that allows for events that come in clusters.

    ``events``, ``exposure``: numbers, or one for each run (R). The interval is the exact Poisson one. If there are several runs
    and their dispersion is above 1, it is widened to contain Student's t interval over runs too: rate +- t(.975, R - 1) standard
    errors of the ratio of the sums. Where the exposures are equal that is the t interval of the runs' rates.
    Raises ValueError if the shapes differ, a count is no whole number from 0 up, or an exposure is not above 0.
    """
    from scipy.special import gammaincinv, stdtrit

    event_R = np.atleast_1d(np.asarray(events, dtype=np.float64))
    exposure_R = np.atleast_1d(np.asarray(exposure, dtype=np.float64))
    if event_R.ndim != 1 or event_R.shape != exposure_R.shape or not event_R.size:
        raise ValueError(f"events have shape {event_R.shape} and exposures {exposure_R.shape}; give one of each a run")
    if np.any(event_R < 0) or np.any(event_R != np.floor(event_R)) or not np.all(np.isfinite(event_R)):
        raise ValueError(f"events must be whole numbers from 0 up, not {event_R.tolist()}")
    if not np.all((exposure_R > 0) & np.isfinite(exposure_R)):
        raise ValueError(f"exposures must be above 0, not {exposure_R.tolist()}")
    runs, count, total = len(event_R), int(event_R.sum()), float(exposure_R.sum())
    rate = count / total
    low = float(gammaincinv(count, _TAIL)) / total if count else 0.0
    high, at_most = (float(gammaincinv(count + 1, 1 - tail)) / total for tail in (_TAIL, 2 * _TAIL))
    dispersion, method = _dispersion(event_R, exposure_R), EXACT
    if dispersion is not None and dispersion > 1:
        residual_R = event_R - rate * exposure_R
        error = math.sqrt(runs / (runs - 1) * float(residual_R @ residual_R)) / total
        low = max(0.0, min(low, rate - float(stdtrit(runs - 1, 1 - _TAIL)) * error))
        high = max(high, rate + float(stdtrit(runs - 1, 1 - _TAIL)) * error)
        at_most = max(at_most, rate + float(stdtrit(runs - 1, 1 - 2 * _TAIL)) * error)
        method = OVER_RUNS
    return Rate(count, total, rate, low, high, at_most, runs, dispersion, method)


def share_over_seeds(outcomes: Mapping[int, Sequence[bool]]) -> Proportion:
    """The share of runs of which something holds. ``outcomes``: of the runs of each seed, at least one.

    Runs of one seed, such as those at several rates, are not independent. So where a seed has several, the interval is Student's
    t over the seeds' own shares, from FEWEST_SEEDS on and if these are not all equal. If each has one, it is exact.
    """
    runs = [held for own in outcomes.values() for held in own]
    found = proportion(sum(runs), len(runs))
    if len(runs) == len(outcomes):
        return found
    shares = [sum(own) / len(own) for own in outcomes.values()]
    effect = mean_over_seeds(shares)
    low = high = math.nan
    if len(shares) >= FEWEST_SEEDS and effect.low is not None and effect.high is not None:
        low, high = max(0.0, effect.low), min(1.0, effect.high)
    return replace(found, low=low, high=high, at_most=math.nan)


def rate_over_seeds(counts: Mapping[int, Sequence[tuple[int, float]]]) -> Rate:
    """Events per unit of exposure. ``counts``: events and exposure of the runs of each seed, at least one.

    As :func:`poisson_rate`, with seeds for runs: what the runs of one seed have in common widens the interval if the seeds' sums
    vary more than Poisson's. From fewer than FEWEST_SEEDS with several runs that cannot be told, and there is none.
    """
    sums = np.array([np.sum(own, axis=0) for own in counts.values()])
    found = poisson_rate(sums[:, 0], sums[:, 1])
    if len(counts) < FEWEST_SEEDS and any(len(own) > 1 for own in counts.values()):
        return replace(found, low=math.nan, high=math.nan, at_most=math.nan)
    return found


def fisher(k1: int, n1: int, k2: int, n2: int) -> float:
    """Two-sided p-value of Fisher's exact test that ``k1`` of ``n1`` and ``k2`` of ``n2`` are of one share."""
    from scipy.stats import fisher_exact

    for k, n in ((k1, n1), (k2, n2)):
        if not 0 <= k <= n:
            raise ValueError(f"{k} of {n} is no share")
    return float(fisher_exact([[k1, n1 - k1], [k2, n2 - k2]]).pvalue)


def mcnemar(outcomes: Mapping[int, bool], baseline: Mapping[int, bool]) -> float:
    """Two-sided p-value of McNemar's exact test that an outcome is as likely in two arms, paired by seed.

    Only seeds in both count, and of these only those whose outcomes differ: half of them are expected either way. 1.0 if none
    differs; five that all differ the same way give 0.06, six 0.03.
    """
    from scipy.special import bdtr

    both = outcomes.keys() & baseline.keys()
    only_arm = sum(outcomes[seed] and not baseline[seed] for seed in both)
    only_baseline = sum(baseline[seed] and not outcomes[seed] for seed in both)
    return min(1.0, 2 * float(bdtr(min(only_arm, only_baseline), only_arm + only_baseline, 0.5)))


def sign_flip(differences: npt.ArrayLike) -> float:
    """Two-sided p-value of the exact test that paired differences are as likely with the other sign.

    It is the share of all 2^n choices of signs with which their sum is as far from zero as it is, or farther: 1.0 if all are
    zero, :func:`least_p` if all have one sign. What agrees up to rounding counts as equal. Raises ValueError for more than
    MOST_FLIPPED differences.
    """
    difference_S = np.asarray(differences, dtype=np.float64)
    if len(difference_S) > MOST_FLIPPED:
        raise ValueError(f"{len(difference_S)} differences; the signs of at most {MOST_FLIPPED} are flipped")
    sum_F = np.zeros(1)  # of the first differences, with each choice of their signs
    for difference in difference_S:
        sum_F = np.concatenate([sum_F + difference, sum_F - difference])
    rounding = 1e-12 * float(np.abs(difference_S).sum())
    return float(np.mean(np.abs(sum_F) >= abs(float(difference_S.sum())) - rounding))


def least_p(pairs: int) -> float:
    """The least p-value that McNemar's test and :func:`sign_flip` can have with this many pairs."""
    return min(1.0, 2 * 0.5**pairs)


def _dispersion(event_R: npt.NDArray[np.float64], exposure_R: npt.NDArray[np.float64]) -> float | None:
    """Pearson's statistic over its degrees of freedom; for equal exposures the variance of the counts over their mean."""
    if len(event_R) < 2 or not event_R.any():
        return None
    expected_R = exposure_R * (event_R.sum() / exposure_R.sum())
    return float(((event_R - expected_R) ** 2 / expected_R).sum()) / (len(event_R) - 1)

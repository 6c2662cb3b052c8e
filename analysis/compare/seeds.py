"""How arms differ over seeds: paired intervals, p-values, their adjustment for several arms, and what may be said of them.

Up to MOST_FOR_T pairs the interval is Student's t, which is exact for normal differences however few there are; with more it is a
studentised bootstrap, which does not need them normal. docs/comparing-arms.md says why, results/coverage how often each is right.

Shapes: S seeds, or pairs of them; O observations of a seed; R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from .statistics import CONFIDENCE, POWER, RESAMPLES, Effect, Floats, holm, mean_over_seeds

Arm = TypeVar("Arm")
MOST_FOR_T = 10
"""Most seeds from which the interval is Student's t."""
PAIRED_T = "paired t"
BOOTSTRAP_T = "bootstrap-t over seeds"
TOO_FEW = "no interval: fewer than two pairs of seeds"
ALL_EQUAL = "no interval: all differences are equal"


@dataclass(frozen=True)
class Difference:
    """How much higher an arm is than the baseline, over pairs of runs."""

    effect: Effect
    """The mean of the differences (NaN if there are none) and, where there is one, its 95% interval."""
    p: float | None
    """Two-sided: below 0.05 where the interval excludes zero. Without an interval 1 if all differences of two pairs or more are
    zero, otherwise None."""
    n: int
    """Pairs of runs that were compared."""
    left_out: tuple[int, ...]
    """Seeds without a finite value in both arms. If their runs diverged, the others are not a fair sample: compare how many
    diverged as well."""
    method: str
    """PAIRED_T or BOOTSTRAP_T; or why there is no interval."""
    variance_removed: float | None
    """1 - var(difference) / (var(arm) + var(baseline)): 0 if pairing was of no use, 1 if nothing but the effect is left, negative
    if it did harm. None from fewer than three pairs, or if neither arm varies."""


def paired(
    values: Mapping[int, float],
    baseline: Mapping[int, float],
    pairs: Sequence[tuple[int, int]] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Difference:
    """The mean difference of two arms over runs that are paired by seed.

    ``values``, ``baseline``: each run's value, by its seed. ``pairs``: seeds of the arm and of the baseline that belong
    together, for arms that share no seeds, such as a control; otherwise the same seed. A run without a finite partner is left
    out, and never compared with a mean. ``seed`` and ``resamples`` are the bootstrap's. Differences that agree up to rounding
    count as equal, and those that are zero up to rounding as zero: they give no interval, however small the spread that rounding
    leaves.
    Raises ValueError if ``pairs`` has a seed twice, whose differences would not be independent.
    """
    if pairs is None:
        pairs = [(each, each) for each in sorted(values.keys() | baseline.keys())]
    for side in zip(*pairs, strict=True):
        if len(set(side)) < len(side):
            raise ValueError(f"pairs has a seed twice among {', '.join(map(str, side))}")
    both = [(values.get(own, math.nan), baseline.get(other, math.nan)) for own, other in pairs]
    finite = [math.isfinite(own) and math.isfinite(other) for own, other in both]
    value_S2 = np.array([pair for pair, kept in zip(both, finite, strict=True) if kept]).reshape(-1, 2)
    difference_S = value_S2[:, 0] - value_S2[:, 1]
    rounding = 4 * np.finfo(np.float64).eps * np.abs(value_S2).max(initial=0.0)
    if len(difference_S) and np.ptp(difference_S) <= rounding:
        difference_S[:] = difference_S[0] if np.abs(difference_S).max() > rounding else 0.0
    effect, p, method = _tested([difference_S[i : i + 1] for i in range(len(difference_S))], seed, resamples)
    return Difference(
        effect=effect,
        p=p,
        n=len(difference_S),
        left_out=tuple(own for (own, _), kept in zip(pairs, finite, strict=True) if not kept),
        method=method,
        variance_removed=_variance_removed(value_S2),
    )


def hierarchical_bootstrap(observations: Sequence[npt.ArrayLike], *, seed: int, resamples: int = RESAMPLES) -> Effect:
    """The mean over seeds of each seed's mean observation, with a 95% interval over seeds by a two-stage bootstrap-t.

    ``observations``: an array for each seed, of any length; what is not finite is left out, and a seed without a finite
    observation too. Seeds are drawn first, then observations within each. Drawing twice makes resampled means vary too much;
    therefore each deviation is divided by its resample's own standard error, which is too large by the same factor. From at most
    MOST_FOR_T seeds, which are too few to draw from, the interval is Student's t over the seeds' means.
    """
    arrays = [np.asarray(each, dtype=np.float64).ravel() for each in observations]
    finite = [array[np.isfinite(array)] for array in arrays]
    effect, _, _ = _tested([array for array in finite if len(array)], seed, resamples)
    return effect


def adjusted(differences: Mapping[Arm, Difference]) -> dict[Arm, float]:
    """Each arm's p-value adjusted by Holm's method for the number of arms with two pairs or more.

    All of these count, whatever their differences are. One whose differences are equal and not zero has no p-value, and takes the
    smallest rank; its own result is NaN, as that of an arm with fewer pairs.
    """
    ranked = [math.nan if each.n < 2 else 0.0 if each.p is None else each.p for each in differences.values()]
    found = zip(differences.items(), holm(ranked).tolist(), strict=True)
    return {arm: math.nan if each.p is None else p for (arm, each), p in found}


def number_of_tests(differences: Iterable[Difference]) -> int:
    """How many arms :func:`adjusted` adjusts for; at least 1."""
    return max(1, sum(each.n > 1 for each in differences))


def verdict(difference: Difference, adjusted_p: float, *, tests: int = 1, form: str = ".3g") -> str:
    """What may be said: "higher", "lower", or "no difference shown; one of X would be".

    A difference is claimed only if both the interval excludes zero and the adjusted p-value is at most 0.05. X is the smallest
    true difference that would be claimed with 80% power if ``tests`` arms are compared, formatted by ``form``. Without an
    interval the verdict is why there is none.
    """
    effect, smallest = difference.effect, smallest_shown(difference, tests)
    if effect.low is None or effect.high is None or smallest is None:
        return difference.method
    if adjusted_p <= 1 - CONFIDENCE and not effect.low <= 0 <= effect.high:
        return "higher" if effect.low > 0 else "lower"
    return f"no difference shown; one of {smallest:{form}} would be"


def smallest_shown(difference: Difference, tests: int = 1) -> float | None:
    """The smallest true difference that would be claimed with 80% power or more if ``tests`` arms are compared.

    With several arms this holds whatever the others are: it takes the strictest level of Holm's method. None without an interval.
    """
    from scipy.special import nctdtrinc, stdtrit

    error, freedom = difference.effect.standard_error, difference.n - 1
    if error is None:
        return None
    critical = stdtrit(freedom, 1 - (1 - CONFIDENCE) / 2 / tests)
    return float(nctdtrinc(freedom, 1 - POWER, critical)) * error


def excludes(effect: Effect, bound: float) -> bool:
    """Whether the 95% interval lies within -``bound`` to ``bound``, so that larger effects are excluded.

    This is the test of equivalence by two one-sided tests at 2.5% each. False without an interval.
    """
    return effect.low is not None and effect.high is not None and -bound < effect.low and effect.high < bound


def _variance_removed(value_S2: Floats) -> float | None:
    if len(value_S2) < 3:
        return None
    total = float(value_S2.var(axis=0, ddof=1).sum())
    return 1 - float((value_S2[:, 0] - value_S2[:, 1]).var(ddof=1)) / total if total > 0 else None


def _tested(observations: Sequence[Floats], seed: int, resamples: int) -> tuple[Effect, float | None, str]:
    """The effect over seeds, its two-sided p-value and the method, from the finite observations of each seed."""
    from scipy.special import stdtr

    mean_S = np.array([array.mean() for array in observations])
    effect = replace(mean_over_seeds(mean_S), n=sum(map(len, observations)))
    seeds, error = len(mean_S), effect.standard_error
    if error is None:
        return (effect, None, TOO_FEW) if seeds < 2 else (effect, None if effect.mean else 1.0, ALL_EQUAL)
    statistic = effect.mean / error
    if seeds > MOST_FOR_T:
        # The interval's ends are the rank-th smallest and the rank-th largest, so that it excludes zero just where p < 0.05.
        rank = int((resamples + 1) * (1 - CONFIDENCE) / 2)
        if rank < 1:
            raise ValueError(f"resamples is {resamples}; a 95% interval takes 39 or more")
        t_R = np.sort(_studentised(observations, mean_S, seed, resamples))
        low_t, high_t = t_R[rank - 1], t_R[-rank]
        if np.isfinite(low_t) and np.isfinite(high_t):
            beyond = int(min(np.count_nonzero(t_R >= statistic), np.count_nonzero(t_R <= statistic)))
            effect = replace(effect, low=effect.mean - float(high_t) * error, high=effect.mean - float(low_t) * error)
            return effect, min(1.0, 2 * (beyond + 1) / (resamples + 1)), BOOTSTRAP_T
    return effect, 2 * float(stdtr(seeds - 1, -abs(statistic))), PAIRED_T


def _studentised(observations: Sequence[Floats], mean_S: Floats, seed: int, resamples: int) -> Floats:
    """(R,): each resample's deviation from the mean over its own standard error.

    Infinite where all that was drawn is equal, which is common if most seeds are: then nothing can be learned from resamples.
    """
    random, seeds = np.random.default_rng(seed), len(mean_S)
    centre, spread = mean_S.mean(), mean_S.std(ddof=1)
    short = np.uint16 if max(seeds, *map(len, observations)) < 2**16 else np.int64  # drawn in less than half the time
    drawn_RS = random.integers(seeds, size=(resamples, seeds), dtype=short)
    value_RS = (mean_S - centre)[drawn_RS]
    for index, array in enumerate(observations):
        if len(array) > 1:
            at = np.nonzero(drawn_RS == index)
            within = array[random.integers(len(array), size=(len(at[0]), len(array)), dtype=short)]
            value_RS[at] = within.mean(axis=1) - centre
    deviation_R = value_RS @ np.full(seeds, 1 / seeds)
    square_R = np.einsum("rs,rs->r", value_RS, value_RS) / seeds - deviation_R**2
    error_R = np.sqrt(np.maximum(square_R, 0.0) / (seeds - 1))
    equal_R = error_R <= 1e-6 * spread  # but for rounding
    return np.where(equal_R, np.copysign(math.inf, deviation_R), deviation_R / np.where(equal_R, 1.0, error_R))

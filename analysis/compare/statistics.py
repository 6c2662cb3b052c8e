"""Weighted means with bootstrap intervals over crossed factors, tests of paired differences, and average precision.

Shapes: M measures, Q observations, N of them counted, F factors that can vary, L levels of a factor, O levels of the one
with the fewest, D combinations of levels of the others, S resamples evaluated together, P pairs or p-values, K candidates.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Labels = npt.NDArray[Any]

RESAMPLES = 2000  # the standard error is then known to about 1.6%
CONFIDENCE = 0.95
POWER = 0.80  # probability to show an effect of the size `smallest`
FEWEST_UNITS = 5
"""Fewest lemmas, and documents, for which a mean gets an interval. Student's t assumes normal effects, which those of a few words
need not be, and values that are equal by chance leave an interval of no width."""
INTERVAL = f"mean +- t x standard error of a bootstrap over crossed lemmas, documents and seeds ({RESAMPLES} resamples)"
SMALLEST = f"the smallest true effect that would be shown with {POWER:.0%} power, as uncertain as its standard error"
CAVEATS = (
    f"no interval is given from fewer than {FEWEST_UNITS} lemmas or documents: resampling so few says little; "
    "from one seed, intervals and smallest effects say nothing of other seeds"
)

_TAIL = (1 - CONFIDENCE) / 2
_NUMBERS_AT_ONCE = 2**20  # float64 in the largest array of one batch of resamples: 8 MiB, within a cache
_FEW_LEVELS = 8  # a factor with this many levels becomes rows of a matrix product, which cost less than more cells


@dataclass(frozen=True)
class Effect:
    """A weighted mean with its 95% interval over clusters; see :func:`crossed_bootstrap`."""

    mean: float
    """NaN if nothing was counted."""
    low: float | None
    """None, like ``high``, ``standard_error`` and ``smallest``, if no factor has two levels or a unit has too few."""
    high: float | None
    standard_error: float | None
    smallest: float | None
    """The smallest true effect whose interval would exclude zero with a probability of 80%."""
    n: int
    """Number of observations counted: finite, with a weight above zero."""
    clusters: dict[str, int]
    """Number of distinct levels of each factor among these."""

    def format(self, form: str) -> str:
        """The mean and, in brackets, the interval, each number in ``form``."""
        mean = format(self.mean, form)
        if self.low is None or self.high is None:
            return mean
        return f"{mean} [{format(self.low, form)}, {format(self.high, form)}]"


def as_dicts(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings of effects, with each effect as a dictionary."""
    return {key: as_dicts(value) if isinstance(value, Mapping) else asdict(value) for key, value in nested.items()}


def crossed_bootstrap(
    value_Q: npt.ArrayLike,
    factors: Mapping[str, npt.ArrayLike],
    *,
    weight_Q: npt.ArrayLike | None = None,
    seed: int,
    resamples: int = RESAMPLES,
) -> Effect:
    """The mean sum(w x) / sum(w) of observations that share levels of several factors, and its bootstrap interval.

    The pigeonhole bootstrap: in each resample every factor of k levels draws k - 1 of them with replacement, and an
    observation counts as often as the product of the counts of its levels. The interval is the mean +- t(.975, d) standard
    errors, with Satterthwaite's degrees of freedom d; docs/synonyms.md has the references and the measured coverage. The
    variance is conservative for nested factors (word in lemma): give only the outer one.

    ``factors``: for each observation the label, an integer or a string, of its level. A factor with one level is reported
    but cannot vary. Values that are not finite and those of weight zero are left out. Raises ValueError if lengths differ or
    if a weight is negative or not finite.
    """
    value_Q = np.asarray(value_Q, dtype=np.float64)
    weight_1Q = np.ones((1, value_Q.size)) if weight_Q is None else np.asarray(weight_Q, dtype=np.float64)[None]
    (effect,) = crossed_bootstraps(value_Q[None], factors, weight_MQ=weight_1Q, seed=seed, resamples=resamples)
    return effect


def crossed_bootstraps(
    value_MQ: npt.ArrayLike,
    factors: Mapping[str, npt.ArrayLike],
    *,
    weight_MQ: npt.ArrayLike,
    seed: int,
    units: Collection[str] = (),
    resamples: int = RESAMPLES,
) -> list[Effect]:
    """:func:`crossed_bootstrap` of several measures of the same observations, each with its own weights.

    No interval is given if fewer than FEWEST_UNITS levels of a factor in ``units`` were counted.
    Measures that count the same observations with the same weights share their resamples, and are evaluated together.
    """
    value_MQ, weight_MQ = np.asarray(value_MQ, dtype=np.float64), np.asarray(weight_MQ, dtype=np.float64)
    labels = {name: np.asarray(label_Q) for name, label_Q in factors.items()}
    if weight_MQ.shape != value_MQ.shape:
        raise ValueError(f"weights have shape {weight_MQ.shape} for values of shape {value_MQ.shape}")
    for name, label_Q in labels.items():
        if label_Q.shape != value_MQ.shape[1:]:
            raise ValueError(f"{name} has shape {label_Q.shape} for {value_MQ.shape[1]} values")
    if not np.all(np.isfinite(weight_MQ) & (weight_MQ >= 0)):
        raise ValueError("weights must be finite and not negative")
    used_MQ = np.where(np.isfinite(value_MQ), weight_MQ, 0.0)
    alike: dict[bytes, list[int]] = {}
    for measure, used_Q in enumerate(used_MQ):
        alike.setdefault(used_Q.tobytes(), []).append(measure)
    found: dict[int, Effect] = {}
    for measures in alike.values():
        used_Q = used_MQ[measures[0]]
        counted_Q = used_Q > 0
        value_MN = value_MQ[np.ix_(np.array(measures), counted_Q)]
        counted = {name: label_Q[counted_Q] for name, label_Q in labels.items()}
        found |= zip(measures, _effects(value_MN, used_Q[counted_Q], counted, units, seed, resamples), strict=True)
    return [found[measure] for measure in range(len(value_MQ))]


def mean_over_seeds(value_S: npt.ArrayLike) -> Effect:
    """The mean of a value per seed with its 95% interval by Student's t; none from a single seed, or if all agree.

    Values that are not finite are left out. If the values are paired differences, this is the paired t interval.
    """
    values: Floats = np.asarray(value_S, dtype=np.float64)
    values = values[np.isfinite(values)]
    n = len(values)
    if n < 2:
        return Effect(float(values.mean()) if n else math.nan, None, None, None, None, n, {"seed": n})
    if np.all(
        values == values[0]
    ):  # by chance, of a measure that takes few values; rounding may leave the mean a little off
        return Effect(float(values[0]), None, None, None, None, n, {"seed": n})
    error = float(values.std(ddof=1)) / math.sqrt(n)
    return _effect(float(values.mean()), error, n - 1, n, {"seed": n})


def signed_rank(value_P: npt.ArrayLike) -> float:
    """The two-sided p-value of Wilcoxon's signed-rank test that ``value_P`` are symmetric about zero.

    NaN and zeros are left out; 1.0 if nothing remains.
    """
    from scipy.stats import wilcoxon

    differences: Floats = np.asarray(value_P, dtype=np.float64)
    differences = differences[~np.isnan(differences) & (differences != 0)]
    return float(wilcoxon(differences).pvalue) if len(differences) else 1.0


def holm(p_P: npt.ArrayLike) -> Floats:
    """The p-values adjusted for the number of tests (Holm, Scandinavian Journal of Statistics 6, 1979), in their order.

    Those not above 0.05 are the hypotheses rejected at a familywise error of 5%, under any dependence between the
    tests. NaN stays NaN and is not counted as a test. Raises ValueError for a p-value outside [0, 1].
    """
    p_P = np.asarray(p_P, dtype=np.float64)
    if np.any((p_P < 0) | (p_P > 1)):
        raise ValueError("p-values must lie in [0, 1]")
    adjusted_P = np.full(p_P.shape, np.nan)
    order_P = np.argsort(p_P, kind="stable")[: np.count_nonzero(~np.isnan(p_P))]  # NaN sorts last
    step_P = p_P[order_P] * np.arange(len(order_P), 0, -1)
    adjusted_P[order_P] = np.minimum(1.0, np.maximum.accumulate(step_P))
    return adjusted_P


def generalised_average_precision(score_K: npt.ArrayLike, gold_K: npt.ArrayLike) -> float:
    """GAP: how well ``score_K`` orders candidates by their gold weight, at most 1; a gold weight of zero means rejected.

    sum_i I(x_i > 0) mean(x_1..x_i) with the gold weights x by falling score, over the same with x in falling order
    (Kishida, NII Technical Report 2005-014E; for lexical substitution Thater, Dinu and Pinkal, 2009). Among equal scores
    smaller gold weights come first, so that a system that ties all candidates gets the lowest value and no lucky one.
    NaN if no gold weight is positive or a score is NaN. Raises ValueError if the lengths differ or if a gold weight is
    negative or not finite.
    """
    score_K, gold_K = np.asarray(score_K, dtype=np.float64), np.asarray(gold_K, dtype=np.float64)
    if score_K.shape != gold_K.shape:
        raise ValueError(f"{len(score_K)} scores for {len(gold_K)} gold weights")
    if not np.all(np.isfinite(gold_K) & (gold_K >= 0)):
        raise ValueError("gold weights must be finite and not negative")
    if not np.any(gold_K > 0) or np.any(np.isnan(score_K)):
        return math.nan
    return _precision_gained(gold_K[np.lexsort((gold_K, -score_K))]) / _precision_gained(np.sort(gold_K)[::-1])


def _precision_gained(gold_K: Floats) -> float:
    """The sum over the positive gold weights of the mean of all weights up to each."""
    mean_K = np.cumsum(gold_K) / np.arange(1, len(gold_K) + 1)
    return float(mean_K[gold_K > 0].sum())


def finite_mean(values: Floats) -> Floats:
    """The mean of the finite values over the first axis; NaN where there is none."""
    finite = np.isfinite(values)
    return ratio(np.where(finite, values, 0.0).sum(0), finite.sum(0))


def ratio(value: npt.ArrayLike, weight: npt.ArrayLike) -> Floats:
    """The quotient, NaN where the weight is 0."""
    weight = np.asarray(weight, dtype=np.float64)
    quotient: Floats = np.asarray(value, dtype=np.float64) / np.where(weight > 0, weight, np.nan)
    return quotient


def _effects(
    value_MN: Floats, weight_N: Floats, labels: Mapping[str, Labels], units: Collection[str], seed: int, resamples: int
) -> list[Effect]:
    """The effects of measures that all have finite values and weights above zero."""
    measures, n = value_MN.shape
    if n == 0:
        return [Effect(math.nan, None, None, None, None, 0, dict.fromkeys(labels, 0))] * measures
    weight_N = weight_N / weight_N.sum()
    mean_M = value_MN @ weight_N
    level_FN: list[Ids] = []
    clusters: dict[str, int] = {}
    for name, label_N in labels.items():
        level_L, level_N = np.unique(label_N, return_inverse=True)
        clusters[name] = len(level_L)
        if len(level_L) > 1:
            level_FN.append(level_N)
    without = [Effect(mean, None, None, None, None, n, clusters) for mean in mean_M.tolist()]
    if not level_FN or any(clusters[name] < FEWEST_UNITS for name in units):
        return without
    pull_MN = weight_N * (value_MN - mean_M[:, None])
    deviation_MS = _deviations(pull_MN, weight_N, level_FN, np.random.SeedSequence(seed), resamples)
    if deviation_MS.shape[1] < 2:
        return without
    error_M, freedom_M = np.std(deviation_MS, axis=1, ddof=1), _freedom(pull_MN, level_FN)
    rows = np.stack([mean_M, error_M, freedom_M], axis=1).tolist()
    return [_effect(mean, error, freedom, n, clusters) for mean, error, freedom in rows]


def _deviations(
    pull_MN: Floats, weight_N: Floats, level_FN: list[Ids], seed: np.random.SeedSequence, resamples: int
) -> Floats:
    """(M, S): the resampled means minus the means, for every resample that has any weight.

    ``pull_MN``: the weights times the deviations from the mean. All measures, and the weights, are sums over the same cells
    (combinations of levels) with the same counts: one matrix product. A factor with few levels, such as seeds, gets rows of
    its own instead, so that there are fewer cells.
    """
    generators = [np.random.default_rng(child) for child in seed.spawn(len(level_FN))]
    levels_F = [int(level_N.max()) + 1 for level_N in level_FN]
    fewest = int(np.argmin(levels_F))
    split = len(level_FN) > 1 and levels_F[fewest] <= _FEW_LEVELS
    rows = levels_F[fewest] if split else 1
    cell_N, level_FD = _cells([level_N for f, level_N in enumerate(level_FN) if not (split and f == fewest)])
    cells = int(cell_N.max()) + 1
    at_N = cell_N + cells * level_FN[fewest] if split else cell_N
    sum_XD = np.concatenate(
        [np.bincount(at_N, x_N, rows * cells).reshape(rows, cells) for x_N in (*pull_MN, weight_N)]
    )  # the rows of each measure, then those of the weights
    batch = max(1, _NUMBERS_AT_ONCE // max(cells, len(sum_XD), sum(levels_F)))
    parts = []
    for start in range(0, resamples, batch):
        size = min(batch, resamples - start)
        count_FLS = [_counts(rng, levels, size) for rng, levels in zip(generators, levels_F, strict=True)]
        count_OS = count_FLS.pop(fewest) if split else np.ones((1, size))
        count_DS = count_FLS[0][level_FD[0]]
        for level_D, count_LS in zip(level_FD[1:], count_FLS[1:], strict=True):
            count_DS *= count_LS[level_D]
        sum_XS = ((sum_XD @ count_DS).reshape(-1, rows, size) * count_OS).sum(axis=1)
        weighty_S = sum_XS[-1] > 0
        parts.append(sum_XS[:-1, weighty_S] / sum_XS[-1, weighty_S])
    return np.concatenate(parts, axis=1)


def _cells(level_FN: list[Ids]) -> tuple[Ids, list[Ids]]:
    """For each observation the index of its combination of levels; for each factor its level in each combination."""
    cell_N = np.zeros(len(level_FN[0]), dtype=np.int64)
    for level_N in level_FN:  # renumbered after each factor, so that the products cannot overflow
        cell_N = np.unique(cell_N * (int(level_N.max()) + 1) + level_N, return_inverse=True)[1]
    first_D = np.unique(cell_N, return_index=True)[1]
    return cell_N, [level_N[first_D] for level_N in level_FN]


def _counts(rng: np.random.Generator, levels: int, size: int) -> Floats:
    """(levels, size): how often each level is drawn in levels - 1 draws with replacement, for each resample."""
    drawn = rng.integers(levels, size=(size, levels - 1)) + levels * np.arange(size)[:, None]
    count_SL = np.bincount(drawn.ravel(), minlength=levels * size).reshape(size, levels)
    return count_SL.T.astype(np.float64, order="C")


def _freedom(pull_MN: Floats, level_FN: list[Ids]) -> Floats:
    """(M,): Satterthwaite's degrees of freedom of the sum of the factors' cluster variances.

    If all levels of every factor are equal, those of the factor with the fewest levels.
    """
    levels_F = np.array([level_N.max() + 1 for level_N in level_FN])
    square_MF = np.array(
        [[np.square(np.bincount(level_N, pull_N)).sum() for level_N in level_FN] for pull_N in pull_MN]
    )
    variance_MF = levels_F / (levels_F - 1) * square_MF
    total_M = variance_MF.sum(axis=1)
    with np.errstate(invalid="ignore"):
        share_MF = variance_MF / total_M[:, None]
    return np.where(total_M > 0, 1 / (share_MF**2 / (levels_F - 1)).sum(axis=1), levels_F.min() - 1)


def _effect(mean: float, error: float, freedom: float, n: int, clusters: dict[str, int]) -> Effect:
    """The interval of a mean, and the smallest effect, from the standard error and its degrees of freedom."""
    from scipy.special import nctdtrinc, stdtrit

    critical = float(stdtrit(freedom, 1 - _TAIL))
    return Effect(
        mean=mean,
        low=mean - critical * error,
        high=mean + critical * error,
        standard_error=error,
        smallest=float(nctdtrinc(freedom, 1 - POWER, critical)) * error,
        n=n,
        clusters=clusters,
    )

"""Confidence against accuracy: bins of equal size, the expected calibration error, and what of it is noise.

Shapes: N positions, K bins.
"""

from __future__ import annotations

import math

import numpy as np

from .statistics import Floats, Ids

DRAWS = 200
"""Of all answers, for the error of a calibrated model; with 15 bins its mean is then known to about 1.4%."""


def equal_bins(key_N: Floats | Ids, bins: int) -> list[Ids]:
    """The positions in bins of equal size, from the least key up; fewer bins where they would be empty."""
    return np.array_split(np.argsort(key_N, kind="stable"), max(1, min(bins, len(key_N))))


def calibration_error(confidence_N: Floats, right_N: Floats, bins: int) -> float:
    """|accuracy - confidence|, averaged over bins of equal size by confidence; NaN without positions.

    The expected calibration error (Guo et al. 2017, arXiv 1706.04599), with the bins of Nguyen & O'Connor (2015, arXiv
    1508.05154).
    """
    if len(confidence_N) == 0:
        return math.nan
    gap_N = right_N - confidence_N
    return float(sum(abs(gap_N[at].sum()) for at in equal_bins(confidence_N, bins)) / len(confidence_N))


def error_if_calibrated(confidence_N: Floats, bins: int, seed: int) -> float:
    """The mean error of a model with these confidences that is right as often as it says, on as many positions.

    An absolute value has no mean of 0, whatever the model. Consistency resampling (Bröcker & Smith 2007; of this error
    Vaicenavicius et al. 2019, arXiv 1902.06977), the confidences held fixed: in each draw each answer is right with the
    probability that is its confidence. What a position depends on does not matter: of a model that is right with this probability
    given all before, the deviations are uncorrelated.
    """
    generator = np.random.default_rng(seed)
    of_bin = equal_bins(confidence_N, bins)
    sorted_N = confidence_N[np.concatenate(of_bin)]
    start_K = np.cumsum([0, *(len(at) for at in of_bin[:-1])])
    draws = [(generator.random(len(sorted_N)) < sorted_N) - sorted_N for _ in range(DRAWS)]
    return float(np.mean([np.abs(np.add.reduceat(gap_N, start_K)).sum() for gap_N in draws]) / len(sorted_N))

"""Against the definitions, with ties."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.compare.ranking import auroc, average_precision, false_positive_rate, rank_correlation

few = st.lists(st.integers(0, 9), min_size=1, max_size=30)


@given(few, few)
def test_the_area_is_the_share_of_pairs_in_the_right_order(known, unknown):
    a_N1, b_1M = np.array(known, float)[:, None], np.array(unknown, float)[None]
    expected = ((b_1M > a_N1) + 0.5 * (b_1M == a_N1)).mean()
    assert auroc(a_N1[:, 0], b_1M[0]) == pytest.approx(expected)


@given(few, few)
def test_precision_is_averaged_over_what_is_unknown(known, unknown):
    expected = np.mean(
        [sum(u >= score for u in unknown) / sum(x >= score for x in known + unknown) for score in unknown]
    )
    assert average_precision(np.array(known, float), np.array(unknown, float)) == pytest.approx(expected)


@given(few, few, st.sampled_from([0.5, 0.95, 1.0]))
def test_false_positives_are_the_fewest_of_all_thresholds(known, unknown, found):
    a_N, b_M = np.array(known, float), np.array(unknown, float)
    expected = min((a_N >= t).mean() for t in [*known, *unknown] if (b_M >= t).mean() >= found)
    assert false_positive_rate(a_N, b_M, found) == pytest.approx(expected)


def test_what_lies_apart_is_told_apart_and_what_is_alike_is_not():
    low, high = np.arange(50.0), np.arange(50.0, 100.0)
    of = (auroc, average_precision, false_positive_rate)
    assert [f(low, high) for f in of] == [1, 1, 0]
    assert [f(np.zeros(9), np.zeros(9)) for f in of] == [0.5, 0.5, 1]
    assert [f(low, np.full(3, math.inf)) for f in of] == [1, 1, 0]


def test_a_score_that_is_not_a_number_leaves_none():
    nothing, some = np.full(3, math.nan), np.arange(3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for f in (auroc, average_precision, false_positive_rate, rank_correlation):
            assert math.isnan(f(nothing, some))
            assert math.isnan(f(some, nothing))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=30))
def test_rank_correlation_is_spearmans(pairs):
    """Pearson's correlation of ranks that are counted: how many are less, and half of those that are equal."""
    a_N, b_N = np.array(pairs, float).T
    ranks_2N = [(x_N[:, None] > x_N).sum(1) + 0.5 * (x_N[:, None] == x_N).sum(1) for x_N in (a_N, b_N)]
    varies = all(np.ptp(rank_N) > 0 for rank_N in ranks_2N)
    expected = np.corrcoef(ranks_2N)[0, 1] if varies else math.nan
    assert rank_correlation(a_N, b_N) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert math.isnan(rank_correlation(a_N, b_N, constant=np.ptp(a_N)))

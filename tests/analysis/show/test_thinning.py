from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from analysis.show.thinning import envelope, stretches, thin_marks

VALUES = st.one_of(st.floats(-1e30, 1e30), st.sampled_from([0.0, -0.0, 1.0, float("nan"), float("inf"), float("-inf")]))


@given(values=hnp.arrays(np.float64, st.integers(0, 300), elements=VALUES), limit=st.integers(3, 60))
def test_the_extremes_of_every_stretch_and_a_gap_in_it_are_drawn_in_order(values: np.ndarray, limit: int) -> None:
    kept = envelope(values, limit)
    assert len(kept) <= max(limit, 0)
    assert (np.diff(kept) > 0).all()
    if len(values) <= limit:
        assert kept.tolist() == list(range(len(values)))
        return
    starts = [*stretches(len(values), limit // 3).tolist(), len(values)]
    assert starts[0] == 0
    for start, end in itertools.pairwise(starts):
        stretch = [float(value) for value in values[start:end]]
        drawn = [float(values[index]) for index in kept if start <= index < end]
        finite = [value for value in stretch if np.isfinite(value)]
        if finite:
            assert min(finite) in drawn
            assert max(finite) in drawn
        assert all(map(np.isfinite, drawn)) == (len(finite) == len(stretch))


@given(count=st.integers(1, 500), number=st.integers(1, 500))
def test_stretches_cover_a_series_evenly(count: int, number: int) -> None:
    lengths = np.diff(stretches(count, min(number, count)), append=count)
    assert lengths.sum() == count
    assert lengths.max() - lengths.min() <= 1
    assert lengths.min() >= 1


@given(places=st.lists(st.integers(0, 10**6), max_size=300, unique=True), limit=st.integers(1, 100))
def test_a_mark_that_is_not_drawn_lies_on_one_that_is(places: list[int], limit: int) -> None:
    marks = np.array(sorted(places), dtype=np.float64)
    drawn = thin_marks(marks, limit)
    assert len(drawn) <= max(limit + 1, 0)
    assert np.isin(drawn, marks).all()
    if len(marks) <= limit:
        assert drawn.tolist() == marks.tolist()
    else:
        width = (marks[-1] - marks[0]) / limit
        assert all(np.abs(drawn - mark).min() <= width * (1 + 1e-9) for mark in marks)

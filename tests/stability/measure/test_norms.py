"""Norms of tensors, large ones included, against float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stability.measure.norms import LARGE, norms_of, tensor_norms


@given(st.lists(st.lists(st.integers(1, 9), min_size=0, max_size=3), min_size=1, max_size=5), st.integers(0, 99))
def test_norms_are_as_defined(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    expected = [float(t.double().square().sum().sqrt()) for t in tensors]
    assert tensor_norms(tensors).tolist() == pytest.approx(expected, rel=1e-5)


def test_large_matrices_are_measured_as_exactly_as_small_ones():
    """torch's own norm of this one is 1e-3 too small."""
    generator = torch.Generator().manual_seed(0)
    small, large = torch.randn(3, 4, generator=generator), torch.randn(20, LARGE, generator=generator).view(-1, 256)
    found = norms_of([large, small, large.bfloat16()], dtype=torch.float32)
    expected = [float(t.double().square().sum().sqrt()) for t in (large, small, large.bfloat16())]
    assert [float(norm) for norm in found] == pytest.approx(expected, rel=2e-6)
    assert all(norm.dtype == torch.float32 for norm in found)


def test_of_nothing_there_are_no_norms():
    assert norms_of([]) == []

"""The Triton kernel against its definition: in Triton's interpreter on CPU (tests/conftest.py), compiled where there is a GPU."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.kernels import BLOCK, masked_softmax
from model.rows import negatives

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def definition(z_CV, bias_V, y_C):
    z_CV = z_CV.double() + (0 if bias_V is None else bias_V.double())
    z_CV[torch.arange(len(y_C)), y_C] = -torch.inf
    return z_CV.softmax(1), z_CV.amax(1), z_CV.logsumexp(1)


def check(z_CV, bias_V, y_C, dtype):
    p_CV, max_C, logsumexp_C = definition(z_CV.clone(), bias_V, y_C)
    on_device = [None if t is None else t.to(DEVICE) for t in (z_CV.clone(), bias_V, y_C)]
    weights_CV, total_C, largest_C, found_C = (t.cpu() for t in masked_softmax(*on_device, dtype))
    assert weights_CV.dtype == dtype
    # One unit in the last place in half precision: the interpreter cuts bfloat16 off where hardware rounds.
    tolerance = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(weights_CV.double(), p_CV, rtol=tolerance, atol=1e-7)
    torch.testing.assert_close(largest_C.double(), max_C, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found_C.double(), logsumexp_C, rtol=1e-6, atol=1e-5)
    assert bool((total_C == 1).all())
    assert bool((weights_CV[torch.arange(len(y_C)), y_C] == 0).all())


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(2, 300),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.0, 1.0, 30.0, 3000.0]),
    biased=st.booleans(),
)
def test_any_shape_and_magnitude(rows, columns, seed, scale, biased):
    generator = torch.Generator().manual_seed(seed)
    z_CV = scale * torch.randn(rows, columns, generator=generator)
    bias_V = torch.randn(columns, generator=generator) if biased else None
    check(z_CV, bias_V, torch.randint(0, columns, (rows,), generator=generator), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [BLOCK - 1, BLOCK, 2 * BLOCK + 5])
def test_rows_longer_than_a_block_in_every_dtype(columns, dtype):
    generator = torch.Generator().manual_seed(0)
    z_CV = 5 * torch.randn(3, columns, generator=generator)
    check(z_CV, torch.randn(columns, generator=generator), torch.tensor([0, columns - 1, columns // 2]), dtype)


def test_all_logits_far_below_zero():
    """A metric head whose centroids are all far away: exp(z) itself would underflow."""
    check(torch.linspace(-9000, -5000, 50).repeat(2, 1), None, torch.tensor([3, 49]), torch.float32)


def test_a_view_of_a_larger_buffer():
    """The last chunk is shorter than the buffer, and rows may be padded."""
    buffer = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    check(buffer[:4, :33], None, torch.tensor([0, 1, 2, 32]), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernel_and_eager_blocks_are_the_same_function(dtype):
    generator = torch.Generator().manual_seed(0)
    z_CV, bias_V = 4 * torch.randn(5, 700, generator=generator), torch.randn(700, generator=generator)
    y_C = torch.randint(0, 700, (5,), generator=generator)
    eager = negatives(z_CV.clone(), bias_V, y_C, dtype)
    weights_CV, total_C, max_C, logsumexp_C = (
        t.cpu() for t in masked_softmax(z_CV.to(DEVICE), bias_V.to(DEVICE), y_C.to(DEVICE), dtype)
    )
    close = {"rtol": 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps, "atol": 1e-7}
    torch.testing.assert_close(
        eager.weights_CV.float() / eager.total_C[:, None], weights_CV.float() / total_C[:, None], **close
    )
    torch.testing.assert_close(eager.max_C, max_C)
    torch.testing.assert_close(eager.logsumexp_C, logsumexp_C)

"""The Triton kernel at the sizes of real vocabularies: compiled on a GPU, in Triton's interpreter on a CPU.

Shapes: C rows, V columns.
"""

import pytest
import torch

from model.kernel_choice import negatives
from model.kernels import masked_softmax
from model.rows import negatives_by_torch
from tests.model.kernel_check import check, within

from .device import DEVICE, ON_GPU, size

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
COLUMNS = size([2, 300, 4095, 4096, 4097], [2, 300, 4095, 4096, 4097, 8192, 50257, 50304, 128256, 131072])
ROWS = size(3, 64)


def logits(columns, scale, seed=0):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    z_CV = scale * torch.randn(ROWS, columns, generator=generator, device=DEVICE)
    y_C = torch.randint(0, columns, (ROWS,), generator=generator, device=DEVICE)
    y_C[:2] = torch.tensor([0, columns - 1])
    return z_CV, torch.randn(columns, generator=generator, device=DEVICE), y_C


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", COLUMNS)
def test_every_length_of_a_row(columns, dtype):
    z_CV, bias_V, y_C = logits(columns, 4.0)
    for bias in (None, bias_V):
        check(z_CV, bias, y_C, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 30.0, 300.0, 3000.0])
def test_every_magnitude(scale, dtype):
    z_CV, bias_V, y_C = logits(size(500, 50257), scale)
    check(z_CV, None, y_C, dtype)
    check(z_CV, scale * bias_V, y_C, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_logits_far_below_zero(dtype):
    """A metric head whose centroids are all far away: exp(z) itself would underflow."""
    z_CV, _, y_C = logits(size(500, 50257), 1.0)
    check(z_CV - 9000, None, y_C, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("padding", [1, 7, 16])
def test_rows_of_a_larger_buffer(padding, dtype):
    """The last chunk is shorter than the buffer, and rows may be padded: what is beyond them must be left alone."""
    columns = size(70, 50257)
    buffer, bias_V, y_C = logits(columns + padding, 3.0)
    y_C.clamp_(max=columns - 1)
    view_CV, beyond = buffer[:-1, :columns], buffer[:, columns:].clone()
    check(view_CV, bias_V[:columns], y_C[:-1], dtype)
    last = buffer[-1].clone()
    weights_CV = masked_softmax(view_CV, None, y_C[:-1], dtype).weights_CV
    assert (weights_CV.data_ptr() == view_CV.data_ptr()) == (dtype == torch.float32), (
        "in place where the dtype allows it"
    )
    assert torch.equal(buffer[:, columns:], beyond)
    assert torch.equal(buffer[-1], last)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_loss_gets_the_kernel_s_weights(dtype):
    """What the loss calls, against the definition in eager float32 on the CPU."""
    z_CV, bias_V, y_C = logits(size(700, 50257), 4.0)
    found = negatives(z_CV.clone(), bias_V, y_C, dtype, "triton")
    eager = negatives_by_torch(z_CV.cpu(), bias_V.cpu(), y_C.cpu(), dtype)
    eps, half = torch.finfo(torch.float32).eps, torch.finfo(dtype)
    for name in ("max_C", "logsumexp_C"):
        expected = getattr(eager, name).double()
        within(getattr(found, name).cpu(), expected, 64 * eps * expected.abs().clamp(min=1), name)
    p_CV = eager.weights_CV.double() / eager.total_C.double()[:, None]
    q_CV = found.weights_CV.cpu().double() / found.total_C.cpu().double()[:, None]
    rounding = 128 * eps + (2 * half.eps if dtype != torch.float32 else 0)
    within(q_CV, p_CV, p_CV * rounding + half.tiny * half.eps * 2 + 1e-37, "probability")


@pytest.mark.skipif(not ON_GPU, reason="needs 2^31 logits in the memory of a GPU")
def test_more_than_two_to_the_31_logits():
    """Offsets beyond 32 bits: the first and the last row, and one on either side of the limit."""
    columns = 131072
    rows = (1 << 31) // columns + 3
    free = torch.cuda.mem_get_info()[0]
    if free < 1.3 * 4 * rows * columns:
        pytest.skip(f"{4 * rows * columns >> 20} MiB of logits, {free >> 20} MiB free")
    z_CV = torch.empty(rows, columns, device=DEVICE)
    picked = [0, (1 << 31) // columns - 1, (1 << 31) // columns, rows - 1]
    pattern_V = torch.randn(columns, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(0))
    z_CV.copy_(pattern_V)  # the same logits in every row, with targets that differ
    y_C = torch.arange(rows, device=DEVICE)
    logsumexp_C = masked_softmax(z_CV, None, y_C, torch.float32).logsumexp_C
    for row in picked:
        kept = torch.arange(columns, device=DEVICE) != row
        expected = pattern_V.double()[kept].logsumexp(0)
        within(logsumexp_C[row].view(1), expected.view(1), 1e-5 * expected.abs().view(1), f"log-sum-exp of row {row}")
        p_V = (pattern_V.double() - expected).exp() * kept
        within(z_CV[row], p_V, 1e-5 * p_V + 1e-37, f"weights of row {row}")

"""The Triton kernel against its definition: in Triton's interpreter on CPU (tests/conftest.py), compiled where there is a GPU;
at the sizes of real vocabularies in tests/gpu/test_kernel.py."""

import platform

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.kernels import BLOCK, masked_softmax
from model.rows import negatives_by_torch

from ..conftest import python
from .kernel_check import check

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def on_device(*tensors):
    return [None if t is None else t.to(DEVICE) for t in tensors]


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
    y_C = torch.randint(0, columns, (rows,), generator=generator)
    check(*on_device(z_CV, bias_V, y_C), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [BLOCK - 1, BLOCK, 2 * BLOCK + 5])
def test_rows_longer_than_a_block_in_every_dtype(columns, dtype):
    generator = torch.Generator().manual_seed(0)
    z_CV = 5 * torch.randn(3, columns, generator=generator)
    bias_V, y_C = torch.randn(columns, generator=generator), torch.tensor([0, columns - 1, columns // 2])
    check(*on_device(z_CV, bias_V, y_C), dtype)


def test_all_logits_far_below_zero():
    """A metric head whose centroids are all far away: exp(z) itself would underflow."""
    check(*on_device(torch.linspace(-9000, -5000, 50).repeat(2, 1), None, torch.tensor([3, 49])), torch.float32)


def test_a_view_of_a_larger_buffer():
    """The last chunk is shorter than the buffer, and rows may be padded."""
    buffer, y_C = on_device(torch.randn(6, 40, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 32]))
    check(buffer[:4, :33], None, y_C, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernel_and_eager_blocks_are_the_same_function(dtype):
    generator = torch.Generator().manual_seed(0)
    z_CV, bias_V = 4 * torch.randn(5, 700, generator=generator), torch.randn(700, generator=generator)
    y_C = torch.randint(0, 700, (5,), generator=generator)
    eager = negatives_by_torch(z_CV.clone(), bias_V, y_C, dtype)
    found = masked_softmax(z_CV.to(DEVICE), bias_V.to(DEVICE), y_C.to(DEVICE), dtype)
    close = {"rtol": 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps, "atol": 1e-7}
    torch.testing.assert_close(
        eager.weights_CV.float() / eager.total_C[:, None],
        found.weights_CV.cpu().float() / found.total_C.cpu()[:, None],
        **close,
    )
    torch.testing.assert_close(eager.max_C, found.max_C.cpu())
    torch.testing.assert_close(eager.logsumexp_C, found.logsumexp_C.cpu())


def test_probabilities_far_from_zero_are_exact():
    """A log-sum-exp near -5000 is rounded by up to 2.4e-4; probabilities must not inherit that."""
    z_CV = torch.randn(4, 300, generator=torch.Generator().manual_seed(0)) - 5000
    check(*on_device(z_CV, None, torch.tensor([0, 1, 2, 299])), torch.float32)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so(value):
    """A run notices a divergence by its loss."""
    z_CV = torch.zeros(2, 40)
    z_CV[0, 7] = value
    found = masked_softmax(z_CV.to(DEVICE), None, torch.tensor([0, 1]).to(DEVICE), torch.float32)
    assert found.weights_CV.isnan().any(1).tolist() == [True, False]
    assert found.logsumexp_C.isfinite().tolist() == [False, True]


COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from model.kernels import BLOCK, _masked_softmax

for capability, weights, biased in ((80, "*fp16", True), (90, "*bf16", False), (100, "*fp32", True)):
    pointers = {"z_ptr": "*fp32", "bias_ptr": "*fp32", "y_ptr": "*i64", "weights_ptr": weights}
    signature = pointers | {"max_ptr": "*fp32", "logsumexp_ptr": "*fp32"}
    signature |= dict.fromkeys(("columns", "z_stride", "weights_stride"), "i32")
    constants = {"HAS_BIAS": biased, "BLOCK": BLOCK} | ({} if biased else {"bias_ptr": None})
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(_masked_softmax, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
    print(capability, len(compiled.asm["cubin"]))
"""


@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="Triton's compiler for NVIDIA GPUs comes with its x86 wheels"
)
def test_the_kernel_compiles_for_gpus(tmp_path):
    """Triton's own compiler, down to machine code, for three generations of GPUs, none of which is needed for it: the
    interpreter accepts much that the compiler refuses."""
    done = python("-c", COMPILE, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    sizes = dict(line.split() for line in done.stdout.splitlines())
    assert sizes.keys() == {"80", "90", "100"}
    assert all(int(size) > 1000 for size in sizes.values())

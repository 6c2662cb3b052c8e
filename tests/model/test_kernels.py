"""The Triton kernel against its definition: in Triton's interpreter on CPU (tests/conftest.py), compiled where there is a GPU;
at the sizes of real vocabularies in tests/gpu/test_kernel.py."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.kernels import BLOCK, masked_softmax
from model.rows import negatives
from tests.conftest import ROOT

from .kernel_check import check

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from model.kernels import _masked_softmax

pointers = {"z_ptr": "*fp32", "y_ptr": "*i64", "max_ptr": "*fp32", "logsumexp_ptr": "*fp32"}
sizes = {"columns": "i32", "z_stride": "i32", "weights_stride": "i32", "HAS_BIAS": "constexpr", "BLOCK": "constexpr"}
for weights, bias in (("*fp32", "constexpr"), ("*bf16", "*fp32"), ("*fp16", "*fp32")):
    given = pointers | sizes | {"weights_ptr": weights, "bias_ptr": bias}
    signature = {name: given[name] for name in _masked_softmax.arg_names}
    constants = {"HAS_BIAS": bias != "constexpr", "BLOCK": 4096} | ({"bias_ptr": None} if bias == "constexpr" else {})
    source = ASTSource(fn=_masked_softmax, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    print(len(compiled.asm["cubin"]))
"""


def test_the_kernel_compiles_for_a_gpu(tmp_path):
    """To machine code for an H100, which needs none. The interpreter accepts Python that the compiler does not."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [int(size) > 1000 for size in done.stdout.split()] == [True] * 3


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

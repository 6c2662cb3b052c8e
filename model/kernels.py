"""The Triton kernel of the loss: softmax over the vocabulary without the target, one pass over memory to read and one to write.

Shapes: C rows (tokens of one chunk), V columns (vocabulary).

The product that makes the logits and the two that use their gradient stay with cuBLAS. Under Triton's interpreter
(TRITON_INTERPRET=1) the same kernel runs on CPU tensors; that is how it is tested where there is no GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # Triton comes with CUDA builds of torch only
    triton = None

BLOCK = 4096
"""Columns processed at once per row."""


def triton_available() -> bool:
    """Whether Triton is installed."""
    return triton is not None


def masked_softmax(
    z_CV: Tensor, bias_V: Tensor | None, y_C: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Softmax of ``z_CV + bias_V`` over all columns except each row's target ``y_C``, in ``dtype``.

    Returns the probabilities (C, V), 0 at the target and overwriting ``z_CV`` if the dtype is the same; their sums (1); and
    each row's largest logit and log-sum-exp (C,).
    """
    rows, columns = z_CV.shape
    weights_CV = z_CV if dtype == z_CV.dtype else torch.empty_like(z_CV, dtype=dtype)
    max_C, logsumexp_C = z_CV.new_empty(rows), z_CV.new_empty(rows)
    with torch.cuda.device_of(z_CV):  # does nothing for a tensor that is not on a GPU
        _masked_softmax[(rows,)](
            z_CV, bias_V, y_C, weights_CV, max_C, logsumexp_C, columns, z_CV.stride(0), weights_CV.stride(0),
            HAS_BIAS=bias_V is not None, BLOCK=min(BLOCK, triton.next_power_of_2(columns)), num_warps=8,
        )  # fmt: skip
    return weights_CV, torch.ones_like(max_C), max_C, logsumexp_C


if triton is not None:

    @triton.jit
    def _masked_softmax(
        z_ptr: tl.tensor,
        bias_ptr: tl.tensor,
        y_ptr: tl.tensor,
        weights_ptr: tl.tensor,
        max_ptr: tl.tensor,
        logsumexp_ptr: tl.tensor,
        columns: tl.tensor,
        z_stride: tl.tensor,
        weights_stride: tl.tensor,
        HAS_BIAS: tl.constexpr,
        BLOCK: tl.constexpr,
    ) -> None:
        # Offsets of rows in 64 bits: a chunk may have more than 2^31 logits.
        row = tl.program_id(0).to(tl.int64)
        target = tl.load(y_ptr + row)
        z_row, weights_row = z_ptr + row * z_stride, weights_ptr + row * weights_stride
        # Running maximum and sum of each lane, combined at the end; -1e30 stands for "nothing yet": -inf - -inf is NaN.
        largest = tl.full([BLOCK], -1e30, tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(0, columns, BLOCK):
            k = start + tl.arange(0, BLOCK)
            z = tl.load(z_row + k, mask=k < columns, other=float("-inf")).to(tl.float32)
            if HAS_BIAS:
                z += tl.load(bias_ptr + k, mask=k < columns, other=0.0)
            z = tl.where(k == target, float("-inf"), z)
            higher = tl.maximum(largest, z)
            total = total * tl.exp(largest - higher) + tl.exp(z - higher)
            largest = higher
        row_max = tl.max(largest, axis=0)
        logsumexp = row_max + tl.log(tl.sum(total * tl.exp(largest - row_max), axis=0))
        tl.store(max_ptr + row, row_max)
        tl.store(logsumexp_ptr + row, logsumexp)
        for start in range(0, columns, BLOCK):
            k = start + tl.arange(0, BLOCK)
            z = tl.load(z_row + k, mask=k < columns, other=float("-inf")).to(tl.float32)
            if HAS_BIAS:
                z += tl.load(bias_ptr + k, mask=k < columns, other=0.0)
            p = tl.where(k == target, 0.0, tl.exp(z - logsumexp))
            tl.store(weights_row + k, p, mask=k < columns)

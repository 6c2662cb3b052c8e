"""The work on each row of logits between the matrix products: exp(z - max) without the target.

It is bound by memory bandwidth, so each row should be read once. On CPU all steps run on a block of rows that fits a core's
cache; on a GPU a Triton kernel does the same (kernels.py, kernel_choice.py).

Shapes: C tokens of one chunk, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_BYTES = 1 << 20
"""Logits per thread processed together on CPU: they fit a core's second-level cache, with room to spare."""


@dataclass
class Negatives:
    """The logits of all classes except the target, as exponentials of each row."""

    weights_CV: Tensor
    """exp(z_k - L) times ``total_C``; 0 at the target."""
    total_C: Tensor
    """Row sums of the weights."""
    max_C: Tensor
    """The largest logit other than the target's."""
    logsumexp_C: Tensor
    """L = log sum_{k != y} exp(z_k)"""


def negatives_by_torch(z_CV: Tensor, bias_V: Tensor | None, y_C: Tensor, dtype: torch.dtype) -> Negatives:
    """The exponentials of ``z_CV + bias_V`` without the targets ``y_C``, in ``dtype``. Overwrites ``z_CV``. The target is
    masked before the sum: subtracting exp(z_y) afterwards would cancel."""
    z_CV.scatter_(1, y_C[:, None], float("-inf"))
    max_C1, total_C = z_CV.new_empty(len(z_CV), 1), z_CV.new_empty(len(z_CV))
    rows = len(z_CV)
    if z_CV.device.type == "cpu":
        rows = max(1, BLOCK_BYTES * torch.get_num_threads() // (z_CV.shape[1] * z_CV.element_size()))
    for start in range(0, len(z_CV), rows):
        block = slice(start, start + rows)
        z_RV = z_CV[block]
        if bias_V is not None:
            z_RV.add_(bias_V)
        torch.amax(z_RV, 1, keepdim=True, out=max_C1[block])
        torch.sum(z_RV.sub_(max_C1[block]).exp_(), 1, out=total_C[block])
    max_C, logsumexp_C = max_C1.squeeze(1), total_C.log() + max_C1.squeeze(1)
    if dtype != z_CV.dtype:
        # As probabilities, so that half precision rounds only the least important ones to 0.
        return Negatives(z_CV.div_(total_C[:, None]).to(dtype), torch.ones_like(total_C), max_C, logsumexp_C)
    return Negatives(z_CV, total_C, max_C, logsumexp_C)

"""Which dtype to compute in. Shapes: C tokens of one chunk, V vocabulary, D width."""

import torch
from torch import Tensor


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype for sums, norms and losses over values of ``dtype``: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def compute_dtype(h: Tensor) -> torch.dtype:
    """Dtype of matrix products on ``h``: autocast's if autocast is on, else that of ``h``."""
    device = h.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else h.dtype


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ b as float32 (float64 for float64 inputs), whatever the inputs' dtype; in ``out`` if given. For half-precision
    inputs the result is the unrounded sum on CUDA, outside autograd; elsewhere its rounded value."""
    wide = wide_dtype(a.dtype)
    if a.dtype == wide:
        return torch.mm(a, b, out=out)
    if a.is_cuda and not torch.is_grad_enabled():  # mm with an output dtype has no derivative
        return torch.mm(a, b, out_dtype=wide) if out is None else torch.mm(a, b, out_dtype=wide, out=out)
    return (a @ b).to(wide) if out is None else out.copy_(a @ b)

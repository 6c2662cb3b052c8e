"""Which implementation of the rows' softmax evaluates the loss: the Triton kernel or torch's own operations.

Before the kernel is first used on a device, it is compared there with a float64 softmax. If it does not compile or disagrees,
torch takes over, with a warning. Shapes: C tokens of one chunk, V vocabulary.
"""

from __future__ import annotations

import functools
import os
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .rows import Negatives, negatives_by_torch

Kernel = Literal["auto", "triton", "torch"]
"""auto: the Triton kernel on a GPU if it passes its check there, else torch; triton: an error instead of torch."""
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Largest relative error of a probability by the dtype it is stored in: in half precision one unit in the last place."""
SMALLEST = 1e-7
"""Absolute error that any probability may have: float16 has no numbers between 0 and 6e-8."""
MAGNITUDES = (0.0, 1.0, 30.0, 3000.0)
"""Standard deviations of the logits of the check."""


@dataclass(frozen=True)
class KernelChoice:
    """What evaluates the loss on a device."""

    name: Literal["triton", "torch"]
    reason: str | None = None
    """Why the Triton kernel is not used on a GPU; None if it is, if there is no GPU, or if torch was requested."""


def negatives(z_CV: Tensor, bias_V: Tensor | None, y_C: Tensor, dtype: torch.dtype, kernel: Kernel) -> Negatives:
    """The exponentials of ``z_CV + bias_V`` without the targets ``y_C``, in ``dtype``. Overwrites ``z_CV``."""
    if z_CV.dtype == torch.float32 and choose_kernel(kernel, z_CV.device, z_CV.shape[1], dtype).name == "triton":
        from .kernels import masked_softmax

        return masked_softmax(z_CV, bias_V, y_C, dtype)
    return negatives_by_torch(z_CV, bias_V, y_C, dtype)


def choose_kernel(kernel: Kernel, device: torch.device, vocabulary: int, dtype: torch.dtype) -> KernelChoice:
    """The implementation for float32 logits of ``vocabulary`` classes on ``device`` with weights in ``dtype``.

    Raises RuntimeError if ``kernel`` is "triton" and the kernel cannot be used.
    """
    on_gpu = device.type == "cuda"
    if kernel == "torch" or (kernel == "auto" and not on_gpu):
        return KernelChoice("torch")
    if not on_gpu and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(f"it needs a GPU, and the device is {device}")
    problem = fault_of_kernel(device, vocabulary, dtype)
    if problem is None:
        return KernelChoice("triton")
    if kernel == "triton":
        raise RuntimeError(problem)
    return KernelChoice("torch", problem)


@functools.cache
def fault_of_kernel(device: torch.device, vocabulary: int, dtype: torch.dtype) -> str | None:
    """What is wrong with the Triton kernel on ``device`` for so many classes, or None. A fault is also a warning.

    Each process compares each combination once, which waits for the device.
    """
    problem = _compare(device, vocabulary, dtype)
    if problem is not None:
        warnings.warn(f"the loss's Triton kernel cannot be used on {device}: {problem}", stacklevel=2)
    return problem


def _compare(device: torch.device, vocabulary: int, dtype: torch.dtype) -> str | None:
    from .kernels import masked_softmax, triton_available

    if not triton_available():
        return "Triton is not installed"
    for biased in (False, True):
        z_CV, bias_V, y_C = _trial(device, vocabulary)
        expected = _definition(z_CV, bias_V if biased else None, y_C)
        try:
            found = masked_softmax(z_CV, bias_V if biased else None, y_C, dtype)
            problem = _disagreement(found, *expected)
        # Whatever compiler, driver and launcher may raise, a run can do without the kernel.
        except Exception as error:  # noqa: BLE001
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if problem is not None:
            return problem
    return None


def _trial(device: torch.device, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of several magnitudes around 0 and far below it, a bias, and targets at both ends and between."""
    generator = torch.Generator(device).manual_seed(0)
    noise_CV = torch.randn(4 * len(MAGNITUDES), vocabulary, generator=generator, device=device)
    rows = torch.arange(len(noise_CV), device=device)
    scale_C = torch.tensor(MAGNITUDES, device=device)[rows % len(MAGNITUDES)]
    offset_C = torch.where(rows < 2 * len(MAGNITUDES), 0.0, -5000.0)
    z_CV = scale_C[:, None] * noise_CV + offset_C[:, None]
    y_C = (rows * (vocabulary - 1)) // (len(rows) - 1)
    return z_CV, torch.randn(vocabulary, generator=generator, device=device), y_C


def _definition(z_CV: Tensor, bias_V: Tensor | None, y_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities, largest logits and log-sum-exps without the targets, in float64 of the logits as float32 adds them."""
    z_CV = (z_CV if bias_V is None else z_CV + bias_V).double().scatter(1, y_C[:, None], float("-inf"))
    return z_CV.softmax(1), z_CV.amax(1), z_CV.logsumexp(1)


def _disagreement(found: Negatives, p_CV: Tensor, max_C: Tensor, logsumexp_C: Tensor) -> str | None:
    """Where the kernel's results differ from float64 by more than rounding, or None."""
    dtype = found.weights_CV.dtype
    weights_CV = found.weights_CV.double() / found.total_C.double()[:, None]
    for name, got, wanted, relative, absolute in (
        ("probabilities", weights_CV, p_CV, TOLERANCES[dtype], SMALLEST),
        ("largest logits", found.max_C.double(), max_C, 1e-6, 1e-6),
        ("log-sum-exps", found.logsumexp_C.double(), logsumexp_C, 1e-6, 1e-5),
    ):
        excess = (got - wanted).abs() - relative * wanted.abs() - absolute
        if not bool((excess <= 0).all()):
            worst = (got - wanted).abs().nan_to_num(float("inf")).max().item()
            return f"its {name} in {str(dtype).removeprefix('torch.')} differ from float64's by up to {worst:.3g}"
    return None

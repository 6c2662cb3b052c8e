"""The harmonic head: probabilities fall as a power of the distance. Shapes: C tokens of one chunk, V vocabulary, D width."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .classes import AffineClasses, Classes, LogitGradient
from .heads import AffineHead
from .precision import product, wide_dtype
from .registry import register_head

EXPONENTS = (1.0, 1e4)
"""Limits of n."""
FLOOR = 1e-6
"""Least squared distance, in units of ||h||^2: what the float32 expansion of it can tell from 0. Nearer classes count as this
near, and their distance has no gradient."""


@register_head("harmonic")
class HarmonicHead(AffineHead):
    """P_k ~ d_k^-n with d_k = ||h - w_k||: the harmonic loss of Baek et al. 2025 (arXiv 2502.01628), under cross-entropy.

    z_k = -n log(d_k / sqrt(D)). Evaluated as -n/2 (log1p(u_k / a) + log(a / D)) with a = ||h||^2 and u_k = ||w_k||^2 - 2 h . w_k,
    which is affine in h: small embeddings leave a small u_k, not a difference of large squares. The target's logit is
    computed from h - w_y itself. P stays the same when all vectors are scaled by one factor; it is not affine, and the matrix of
    log-probabilities has full rank.

    At the start z_k is about n h . w_k / ||h||^2: with GPT-2's embeddings logits have a standard deviation of n 0.02/sqrt(D),
    which is 0.02 at n = sqrt(D), where the linear head's have 0.02 sqrt(D). No logit exceeds that of a class at the origin by
    more than n/2 log(1/FLOOR) = 6.9 n.

    exponent=gpt2 is what the paper's GPT-2 code computes, n = 2 D: there the exponent D is applied to *squared* distances.
    It divides them by D and by the smallest of the row, not detached: both cancel in P and in its gradient, but for rounding.
    What is not copied: with exponents of some hundreds its powers round to 0 in float32 at 1.2 times the least distance, so
    it adds 1% of a uniform distribution to P, by which no NLL exceeds 15.4 at V = 50,304; it turns NaN (0/0 where h = w_k) into
    constants wherever they arise; and it initialises with 0.56/sqrt(D) in place of 0.02, and trains at a rate of 6e-3.
    """

    @dataclass(frozen=True)
    class Options:
        tied: bool = True
        """Share one parameter between input and output embedding."""
        exponent: float | Literal["sqrt_width", "gpt2"] = "sqrt_width"
        """n: a number; sqrt_width = sqrt(D); gpt2 = 2 D, as in the paper's GPT-2 code."""

        def __post_init__(self) -> None:
            if not isinstance(self.exponent, str) and not EXPONENTS[0] <= self.exponent <= EXPONENTS[1]:
                raise ValueError(f"exponent must be from {EXPONENTS[0]:g} to {EXPONENTS[1]:g}, not {self.exponent}")

    def __init__(self, hidden_size: int, vocab_size: int, options: Options) -> None:
        super().__init__(hidden_size, vocab_size, options)
        named = {"sqrt_width": math.sqrt(hidden_size), "gpt2": 2.0 * hidden_size}
        self.exponent = named[options.exponent] if isinstance(options.exponent, str) else options.exponent

    def features(self, h_ND: Tensor, dtype: torch.dtype) -> Tensor:
        """-2 h, so that u_k = f . w_k + ||w_k||^2; float32 in any compute dtype, as near a class the gradient, a multiple of
        h - w_k, is a difference of products."""
        return -2 * h_ND.to(wide_dtype(h_ND.dtype))

    def offsets(self, *classes: Tensor) -> Tensor:
        return torch.linalg.vector_norm(classes[0], dim=1, dtype=wide_dtype(classes[0].dtype)).square()

    def add_offset_gradients(self, db_V: Tensor, classes: tuple[Tensor, ...], gradients: list[Tensor]) -> None:
        gradients[0].addcmul_(classes[0].to(db_V.dtype), 2 * db_V[:, None])

    def logits(self, f_CD: Tensor, *classes: Tensor) -> Tensor:
        u_CV, a_C1 = product(f_CD, classes[0].T) + self.offsets(*classes), self.squared_lengths(f_CD)[:, None]
        ratio_CV = (u_CV / a_C1).clamp(min=FLOOR - 1)
        return -self.exponent / 2 * (torch.log1p(ratio_CV) + (a_C1 / f_CD.shape[1]).log())

    def squared_lengths(self, f_CD: Tensor) -> Tensor:
        """a (C,), not quite 0."""
        squares_C = f_CD.to(wide_dtype(f_CD.dtype)).square().sum(1) / 4
        return squares_C.clamp(min=1e-30)

    def target_logits(self, f_CD: Tensor, y_C: Tensor, z_C: Tensor, *classes: Tensor) -> Tensor:
        difference_CD = (f_CD.to(z_C.dtype) / 2).add_(classes[0].index_select(0, y_C))
        squares_C = torch.maximum(difference_CD.square().sum(1), FLOOR * self.squared_lengths(f_CD))
        return -self.exponent / 2 * (squares_C / f_CD.shape[1]).log()

    def vocabulary(self, tensors: tuple[Tensor, ...], dtype: torch.dtype, with_gradient: bool) -> Classes:
        return HarmonicClasses(self, tensors, dtype, with_gradient)


class HarmonicClasses(AffineClasses):
    """Classes whose logits are logarithms of what is affine: a chunk costs matrix products and a second buffer, for slopes."""

    head: HarmonicHead

    def __init__(
        self, head: HarmonicHead, tensors: tuple[Tensor, ...], dtype: torch.dtype, with_gradient: bool
    ) -> None:
        super().__init__(head, tensors, dtype, with_gradient)
        self.bias_V = None  # added below, before the logarithm
        self.slope_CV: Tensor | None = None

    def logits(self, f_CD: Tensor) -> Tensor:
        """The logits; keeps a/(a + u), 0 below the floor, which is their slope in u but for -n/(2a)."""
        u_CV, a_C1 = super().logits(f_CD), self.head.squared_lengths(f_CD)[:, None]
        assert self.b_V is not None
        ratio_CV = u_CV.add_(self.b_V).div_(a_C1)
        if self.slope_CV is None:
            self.slope_CV = torch.empty_like(ratio_CV)
        slope_CV = self.slope_CV[: len(f_CD)]
        torch.add(ratio_CV, 1, out=slope_CV).reciprocal_()
        slope_CV.masked_fill_(ratio_CV < FLOOR - 1, 0)
        return ratio_CV.clamp_(min=FLOOR - 1).log1p_().add_((a_C1 / f_CD.shape[1]).log()).mul_(-self.head.exponent / 2)

    def mean_logits(self, f_CD: Tensor, z_CV: Tensor) -> Tensor:
        return z_CV.mean(1)

    def accumulate(self, gradient: LogitGradient, f_CD: Tensor) -> Tensor:
        """As in the base class, after multiplying by the slopes; the squared lengths of ``f_CD`` are in every distance."""
        assert self.slope_CV is not None
        factor_C = -self.head.exponent / (2 * self.head.squared_lengths(f_CD))
        if gradient.uniform_C is None:
            weights_CV, scale_C = gradient.weights_CV, gradient.scale_C * factor_C
        else:
            weights_CV, scale_C = gradient.dense().to(f_CD.dtype), factor_C
        weights_CV.mul_(self.slope_CV[: len(f_CD)])
        total_C = weights_CV.sum(1, dtype=scale_C.dtype) * scale_C
        df_CD = super().accumulate(LogitGradient(weights_CV, scale_C), f_CD)
        return df_CD.addcmul_(f_CD.to(df_CD.dtype), total_C[:, None] / 2)

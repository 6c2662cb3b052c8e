"""The vocabulary side of one evaluation of the loss: logits of chunks of tokens, and accumulated class gradients. Shapes: C
tokens of one chunk, V vocabulary, D width."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .precision import product

if TYPE_CHECKING:
    from .heads import AffineHead, Head


@dataclass
class LogitGradient:
    """Gradient of C tokens' losses with respect to their logits, factored: scale_C1 * weights_CV + uniform_C1."""

    weights_CV: Tensor
    scale_C: Tensor
    uniform_C: Tensor | None = None
    """Added to every class of a token."""

    def dense(self) -> Tensor:
        """The gradient (C, V) itself, in float32; overwrites the weights if these are float32."""
        dz_CV = self.weights_CV.to(self.scale_C.dtype).mul_(self.scale_C[:, None])
        return dz_CV if self.uniform_C is None else dz_CV.add_(self.uniform_C[:, None])


class Classes:
    """Class tensors of any head; their gradients by autograd, which evaluates each chunk's logits a second time."""

    bias_V: Tensor | None = None
    """Still to be added to each row of ``logits``."""
    auxiliary: Classes | None = None
    """Of the auxiliary head, if there is one."""

    def __init__(self, head: Head, tensors: tuple[Tensor, ...], dtype: torch.dtype, with_gradient: bool) -> None:
        self.head = head
        real = head.without_padding(tensors)
        self.tensors = tuple(t.to(dtype) if t.dim() == 2 else t for t in real)
        self.padded_gradients = [torch.zeros_like(t) for t in tensors] if with_gradient else []
        self.gradients = [total[: len(t)] for total, t in zip(self.padded_gradients, real, strict=False)]

    def logits(self, f_CD: Tensor) -> Tensor:
        """Logits (C, V) of a chunk up to a constant per token and ``bias_V``. May overwrite those of the last chunk."""
        return self.head.logits(f_CD, *self.tensors)

    def mean_logits(self, f_CD: Tensor, z_CV: Tensor) -> Tensor:
        """Mean over the vocabulary (C,) of the chunk's logits, bias included."""
        return z_CV.mean(1)

    def accumulate(self, gradient: LogitGradient, f_CD: Tensor) -> Tensor:
        """Add to the gradients of the class tensors; returns that of ``f_CD``. Overwrites ``gradient``."""
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in (f_CD, *self.tensors)]
            z_CV = self.head.logits(*leaves)
            df_CD, *parts = torch.autograd.grad(z_CV, leaves, gradient.dense().to(z_CV.dtype))
        for total, part in zip(self.gradients, parts, strict=True):
            total.add_(part)
        return df_CD

    def finish(self) -> list[Tensor]:
        """The gradients of the class tensors, after the last chunk."""
        return self.padded_gradients


class AffineClasses(Classes):
    """Classes of a head with logits f @ A.T + b, A being the first class tensor: a chunk costs only matrix products."""

    head: AffineHead

    def __init__(self, head: AffineHead, tensors: tuple[Tensor, ...], dtype: torch.dtype, with_gradient: bool) -> None:
        super().__init__(head, tensors, dtype, with_gradient)
        self.bias_V = self.b_V = head.offsets(*self.tensors)
        self.db_V = tensors[0].new_zeros(len(self.tensors[0]))
        self.buffer_CV: Tensor | None = None
        # Sums over tokens of the gradient that all classes share, for A (None until there is any) and for b.
        self.uniform_D: Tensor | None = None
        self.uniform = tensors[0].new_zeros(())

    def logits(self, f_CD: Tensor) -> Tensor:
        """f @ A.T in one reused buffer; b stays in ``bias_V``."""
        if self.buffer_CV is None:  # the first chunk is the largest
            self.buffer_CV = product(f_CD, self.tensors[0].T)
            return self.buffer_CV
        return product(f_CD, self.tensors[0].T, self.buffer_CV[: len(f_CD)])

    @functools.cached_property
    def mean_class(self) -> tuple[Tensor, Tensor | float]:
        """Mean over the vocabulary of A (D,) and of b."""
        return self.tensors[0].mean(0, dtype=self.db_V.dtype), 0.0 if self.b_V is None else self.b_V.mean()

    def mean_logits(self, f_CD: Tensor, z_CV: Tensor) -> Tensor:
        """From the mean class, without a pass over the logits."""
        mean_D, mean_b = self.mean_class
        return f_CD.to(mean_D.dtype) @ mean_D + mean_b

    def accumulate(self, gradient: LogitGradient, f_CD: Tensor) -> Tensor:
        """As in the base class, by matrix products alone."""
        weights_CV, scale_C1 = gradient.weights_CV, gradient.scale_C[:, None]
        df_CD = product(weights_CV, self.tensors[0]).mul_(scale_C1)
        if f_CD.dtype == self.db_V.dtype:
            self.gradients[0].addmm_(weights_CV.T, f_CD * scale_C1)
            if self.b_V is not None:
                self.db_V.addmv_(weights_CV.T, gradient.scale_C)
        else:
            # Scaled to a largest of 1, since small scales would round to 0 in half precision. Sums are float32.
            largest = gradient.scale_C.abs().amax().clamp(min=torch.finfo(self.db_V.dtype).tiny)
            scale_C1 = (scale_C1 / largest).to(f_CD.dtype)
            self.gradients[0].addcmul_(product(weights_CV.T, f_CD * scale_C1), largest)
            if self.b_V is not None:
                self.db_V.addcmul_(product(weights_CV.T, scale_C1).squeeze(1), largest)
        if gradient.uniform_C is not None:
            df_CD.addcmul_(gradient.uniform_C[:, None], self.mean_class[0] * len(self.db_V))
            sum_D = gradient.uniform_C @ f_CD.to(self.db_V.dtype)
            self.uniform_D = sum_D if self.uniform_D is None else self.uniform_D + sum_D
            self.uniform += gradient.uniform_C.sum()
        return df_CD

    def finish(self) -> list[Tensor]:
        """Also adds the shared gradient and what follows from the gradient of b."""
        if self.uniform_D is not None:
            self.gradients[0] += self.uniform_D
        if self.b_V is not None:
            self.head.add_offset_gradients(self.db_V + self.uniform, self.tensors, self.gradients)
        return super().finish()


class SoftCappedClasses(AffineClasses):
    """The same for logits c tanh(z / c); needs a second buffer as large as the chunk, for the slopes."""

    def __init__(self, head: AffineHead, tensors: tuple[Tensor, ...], dtype: torch.dtype, with_gradient: bool) -> None:
        super().__init__(head, tensors, dtype, with_gradient)
        self.bias_V = None  # added below, before the cap
        self.slope_CV: Tensor | None = None

    def logits(self, f_CD: Tensor) -> Tensor:
        """The capped logits; keeps their slopes."""
        assert self.head.soft_cap is not None
        z_CV = super().logits(f_CD)
        z_CV = z_CV if self.b_V is None else z_CV.add_(self.b_V)
        z_CV.div_(self.head.soft_cap).tanh_()
        if self.slope_CV is None:
            self.slope_CV = torch.empty_like(z_CV)
        torch.mul(z_CV, z_CV, out=self.slope_CV[: len(z_CV)]).neg_().add_(1)
        return z_CV.mul_(self.head.soft_cap)

    def mean_logits(self, f_CD: Tensor, z_CV: Tensor) -> Tensor:
        return z_CV.mean(1)

    def accumulate(self, gradient: LogitGradient, f_CD: Tensor) -> Tensor:
        """As in the base class, after multiplying by the slopes."""
        assert self.slope_CV is not None
        slope_CV = self.slope_CV[: len(f_CD)]
        if gradient.uniform_C is None:
            weights_CV, scale_C = gradient.weights_CV.mul_(slope_CV), gradient.scale_C
        else:
            weights_CV = gradient.dense().mul_(slope_CV).to(f_CD.dtype)
            scale_C = torch.ones_like(gradient.scale_C)
        return super().accumulate(LogitGradient(weights_CV, scale_C), f_CD)

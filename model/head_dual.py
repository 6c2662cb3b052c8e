"""The dual head: a linear head, and beside it an auxiliary one that only training has. Shapes: N tokens, C tokens of one chunk, V
vocabulary, D width."""

import torch
from torch import Tensor, nn

from .classes import AffineClasses, Classes
from .heads import AffineHead, Head
from .precision import product, wide_dtype
from .registry import register_head

INITIAL_STD = 0.02
"""Of the auxiliary weights: that of most bodies' embeddings."""


@register_head("dual")
class DualHead(AffineHead):
    """z_k = h . w_k, and auxiliary logits s_k = h . a_k, which only an objective reads (Yang et al. 2024, arXiv 2411.08937; the
    linear auxiliary classifier of models/ in penghui-yang/DHKD). They are no part of a prediction.

    The auxiliary weights (V, D) are never tied; checkpoints have them, since resuming needs them. The authors' other choices, a
    two-layer auxiliary classifier with batch normalisation and gradients of the two losses that are aligned, are left out.
    """

    has_auxiliary = True

    def __init__(self, hidden_size: int, vocab_size: int, options: Head.Options) -> None:
        super().__init__(hidden_size, vocab_size, options)
        self.auxiliary = nn.Parameter(torch.empty(vocab_size, hidden_size))

    def reset_parameters(self) -> None:
        nn.init.normal_(self.auxiliary, std=INITIAL_STD)

    @torch.no_grad()
    def resize(self, rows: int) -> None:
        new_VD = self.auxiliary.new_empty(rows, self.auxiliary.shape[1]).normal_(std=INITIAL_STD)
        kept = min(rows, len(self.auxiliary))
        new_VD[:kept] = self.auxiliary[:kept]
        self.auxiliary = nn.Parameter(new_VD)

    def classes(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return (*super().classes(dtype), self.auxiliary.to(wide_dtype(self.auxiliary.dtype)))

    def auxiliary_logits(self, f_ND: Tensor) -> Tensor:
        return product(f_ND, self.auxiliary[: self.n_classes].to(f_ND.dtype).T)

    def vocabulary(self, tensors: tuple[Tensor, ...], dtype: torch.dtype, with_gradient: bool) -> Classes:
        return DualClasses(self, tensors, dtype, with_gradient)


class DualClasses(AffineClasses):
    """The classes of both heads."""

    auxiliary: AffineClasses

    def __init__(self, head: DualHead, tensors: tuple[Tensor, ...], dtype: torch.dtype, with_gradient: bool) -> None:
        super().__init__(head, tensors[:1], dtype, with_gradient)
        self.auxiliary = AffineClasses(head, tensors[1:], dtype, with_gradient)

    def finish(self) -> list[Tensor]:
        return super().finish() + self.auxiliary.finish()

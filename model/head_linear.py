"""The linear head: the usual unembedding."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .heads import AffineHead
from .registry import register_head


@register_head("linear")
class LinearHead(AffineHead):
    """z_k = h . w_k (+ b_k): the usual unembedding; with a soft cap c (Gemma 2, arXiv 2408.00118) then c tanh(z_k / c)."""

    @dataclass(frozen=True)
    class Options:
        tied: bool = True
        """Share one parameter between input and output embedding."""
        bias: bool = False
        """Add a learned bias to each logit."""
        soft_cap: float | None = None
        """c, in nats; null: no cap."""

        def __post_init__(self) -> None:
            if self.soft_cap is not None and not self.soft_cap > 0:
                raise ValueError(f"soft_cap must be positive, not {self.soft_cap}")

    def __init__(self, hidden_size: int, vocab_size: int, options: Options) -> None:
        super().__init__(hidden_size, vocab_size, options)
        self.soft_cap = options.soft_cap
        self.bias = nn.Parameter(torch.empty(vocab_size)) if options.bias else None

    def reset_parameters(self) -> None:
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def classes(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        (weight,) = super().classes(dtype)
        return (weight,) if self.bias is None else (weight, self.bias.to(weight.dtype))

    def offsets(self, *classes: Tensor) -> Tensor | None:
        return classes[1] if len(classes) == 2 else None

    def add_offset_gradients(self, db_V: Tensor, classes: tuple[Tensor, ...], gradients: list[Tensor]) -> None:
        gradients[1] += db_V

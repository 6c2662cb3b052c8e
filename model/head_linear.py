"""The linear head: the usual unembedding."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .heads import AffineHead
from .precision import wide_dtype
from .registry import register_head

MULTIPLIERS = (1e-6, 1e6)
"""Limits of m, as of twice the metric head's scale."""


@register_head("linear")
class LinearHead(AffineHead):
    """z_k = m h . w_k (+ b_k): the usual unembedding; with a soft cap c (Gemma 2, arXiv 2408.00118) then c tanh(z_k / c)."""

    @dataclass(frozen=True)
    class Options:
        tied: bool = True
        """Share one parameter between input and output embedding."""
        bias: bool = False
        """Add a learned bias to each logit."""
        multiplier: float = 1.0
        """m; 1 as usual. With m = 2 g the linear head starts like a metric head of scale g, at any g."""
        soft_cap: float | None = None
        """c, in nats; null: no cap."""

        def __post_init__(self) -> None:
            if not MULTIPLIERS[0] <= self.multiplier <= MULTIPLIERS[1]:
                raise ValueError(
                    f"multiplier must be from {MULTIPLIERS[0]:g} to {MULTIPLIERS[1]:g}, not {self.multiplier}"
                )
            if self.soft_cap is not None and not self.soft_cap > 0:
                raise ValueError(f"soft_cap must be positive, not {self.soft_cap}")

    def __init__(self, hidden_size: int, vocab_size: int, options: Options) -> None:
        super().__init__(hidden_size, vocab_size, options)
        self.soft_cap = options.soft_cap
        self.bias = nn.Parameter(torch.empty(vocab_size)) if options.bias else None

    def reset_parameters(self) -> None:
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def features(self, h_ND: Tensor, dtype: torch.dtype) -> Tensor:
        if self.options.multiplier == 1.0:
            return h_ND.to(dtype)
        return (self.options.multiplier * h_ND.to(wide_dtype(h_ND.dtype))).to(dtype)

    def classes(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        (weight,) = super().classes(dtype)
        return (weight,) if self.bias is None else (weight, self.bias.to(weight.dtype))

    def offsets(self, *classes: Tensor) -> Tensor | None:
        return classes[1] if len(classes) == 2 else None

    def add_offset_gradients(self, db_V: Tensor, classes: tuple[Tensor, ...], gradients: list[Tensor]) -> None:
        gradients[1] += db_V

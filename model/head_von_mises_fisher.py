"""The von Mises-Fisher head: class vectors have directions only, hidden states a concentration too. Shapes: N tokens, V
vocabulary, D width."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .head_cosine import directions
from .heads import AffineHead
from .precision import wide_dtype
from .registry import register_head

MULTIPLIERS = (1e-6, 1e6)
"""Limits of m, as of the linear head's."""


@register_head("von_mises_fisher")
class VonMisesFisherHead(AffineHead):
    """z_k = kappa cos(h, w_k) with kappa = m ||h||: a von Mises-Fisher density around h, compared at the V class directions.

    The hidden state is the parameter of a density on the sphere, exp(kappa cos(h, x)) C_D(kappa), and P_k is its share at the
    direction of w_k among all V directions. The normaliser C_D(kappa), with its Bessel function, is the same for every k and
    cancels. What is left is the linear head with class vectors of length 1: a token cannot become frequent by a long vector,
    and the model says how sure it is by ||h|| alone. That is the parametrisation of Kumar & Tsvetkov 2018 (arXiv 1812.04616),
    as a distribution over V; their loss, -log density at the target, has no softmax, so its nats are not those of a token.
    In Scott et al. 2021 (arXiv 2103.15718) class vectors have concentrations too: logits log C_D(||w_k||) - log C_D(||w_k +
    beta z||), averaged over samples z around h. It is not built here: the samples make N V S logits and a noisy NLL.

    A last normalisation keeps ||h|| near sqrt(D) times its gain, so kappa is nearly the same for all tokens of a pre-norm
    model; it learns by the gain, and hidden_norm/final shows it (times m). At the start kappa is m sqrt(D) and logits have
    a standard deviation of about m, whatever the initialisation of the embeddings.
    """

    @dataclass(frozen=True)
    class Options:
        tied: bool = True
        """Share one parameter between input and output embedding."""
        multiplier: float = 1.0
        """m: concentration per length of the hidden state."""

        def __post_init__(self) -> None:
            if not MULTIPLIERS[0] <= self.multiplier <= MULTIPLIERS[1]:
                raise ValueError(
                    f"multiplier must be from {MULTIPLIERS[0]:g} to {MULTIPLIERS[1]:g}, not {self.multiplier}"
                )

    def features(self, h_ND: Tensor, dtype: torch.dtype) -> Tensor:
        return (self.options.multiplier * h_ND.to(wide_dtype(h_ND.dtype))).to(dtype)

    def classes(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return (directions(self.weight),)

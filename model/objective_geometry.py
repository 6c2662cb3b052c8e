"""Distillation of the geometry of a teacher's hidden states.

Shapes: N tokens, n of them sampled, D width of the student, E width of the teacher.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .objective_distill import Distillation
from .objectives import TokenLogits, negative_log_likelihood
from .precision import wide_dtype
from .registry import register_objective

Form = Literal["procrustes", "gram", "cka", "projection"]
GOLDEN = (math.sqrt(5) - 1) / 2


@register_objective("geometry")
class GeometryDistillation(Distillation):
    """predictions ((1 - alpha) CE + alpha T^2 KL) + weight G: distillation with a measure G of how the last hidden states lie
    among each other in the student and in the teacher, whose width may be another (Bhattarai et al. 2025, arXiv 2509.25253).

    G, of the centred states A (teacher) and B (student) with Frobenius norm 1, is 0 where they are alike: ``procrustes`` 2 - 2
    ||A'B||_*, the squared distance after the best rotation (Ding et al. 2021, arXiv 2108.01661); ``cka`` 1 - ||A'B||^2 /
    (||A'A|| ||B'B||) (Kornblith et al. 2019, arXiv 1905.00414). ``gram``: mean squared difference of the cosines of all pairs of
    tokens. ``projection``: mean squared difference of the teacher's states and a learned linear map of the student's (as
    TinyBERT's, Jiao et al. 2020, arXiv 1909.10351), a parameter of the model that only this loss uses.

    Each G is of the tokens of one micro-batch of one rank, and weighs as much as these are of all; an evaluation leaves it out.
    With procrustes a GPU is waited for once a micro-batch.
    """

    aligns = True
    detached = True
    mixes_positions = (
        "the tokens of a micro-batch are compared with each other, so train.micro_batch_size and the number of ranks change the "
        "curves"
    )

    @dataclass(frozen=True)
    class Options(Distillation.Options):
        form: Form = "procrustes"
        """What G is: the distance after the best rotation, the difference of the tokens' cosines, 1 - CKA, or the error of a
        learned linear map to the teacher's states (docs/mathematics.md)."""
        weight: float = 1.0
        """Of G."""
        predictions: float = 1.0
        """Weight of what is said of the next token, CE and KL together; 0 leaves the geometry alone, which teaches no head to
        predict."""
        positions: int = 512
        """Most tokens of which G is taken, in each micro-batch: the same places of every batch, spread evenly over it."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 < self.weight <= 1e6:
                raise ValueError(
                    f"weight must be above 0 and at most 1e6, not {self.weight}; without G it is kind distill"
                )
            if not 0 <= self.predictions <= 1000:
                raise ValueError(f"predictions must be from 0 to 1000, not {self.predictions}")
            if not 2 <= self.positions <= 8192:
                raise ValueError(f"positions must be from 2 to 8192, not {self.positions}")

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.uses_rows = options.alpha > 0 and options.predictions > 0
        self.projects = options.form == "projection"
        self.weight_of_states = options.weight

    def loss(self, t: TokenLogits) -> Tensor:
        return self.options.predictions * (super().loss(t) if self.uses_rows else negative_log_likelihood(t))

    def of_states(self, h_ND: Tensor, taught_NE: Tensor, valid_N: Tensor, projection: nn.Module | None) -> Tensor:
        """G () of the valid ones among the sampled tokens."""
        places_n = spread(len(h_ND), self.options.positions, h_ND.device)
        wide = wide_dtype(h_ND.dtype)
        with torch.autocast(h_ND.device.type, enabled=False):
            h_nD, taught_nE = h_ND[places_n].to(wide), taught_NE[places_n].to(wide)
            if projection is not None:
                h_nD = projection(h_nD)
            return MEASURES[self.options.form](taught_nE, h_nD, valid_N[places_n].to(wide))


def spread(tokens: int, most: int, device: torch.device) -> Tensor:
    """Which of so many tokens are sampled: at most ``most``, evenly over sequences and over positions in them, by steps of about
    the golden ratio."""
    if tokens <= most:
        return torch.arange(tokens, device=device)
    stride = next(k for k in range(round(GOLDEN * tokens), tokens) if math.gcd(k, tokens) == 1)
    return torch.arange(most, device=device) * stride % tokens


# -------------------------------------------------------------------- G () of states, with valid_n = 1 for each token that counts


def procrustes(a_nE: Tensor, b_nD: Tensor, valid_n: Tensor) -> Tensor:
    """2 - 2 ||A'B||_* after centring, with Frobenius norms 1."""
    a_nE, b_nD = _shape(a_nE, valid_n), _shape(b_nD, valid_n)
    # The nuclear norm is <A'B, UV'>, and its gradient UV', also where singular values coincide.
    return 2 - 2 * ((a_nE @ _polar_factor(a_nE.detach(), b_nD.detach())) * b_nD).sum()


@torch.no_grad()
def _polar_factor(a_nE: Tensor, b_nD: Tensor) -> Tensor:
    """UV' (E, D) from the singular value decomposition USV' of A'B, by that of a matrix of at most n rows and columns. Directions
    in which A'B is 0 are left out: the gradient of least norm."""
    (q_Ei, r_in), (q_Dj, r_jn) = (torch.linalg.qr(x.T) for x in (a_nE, b_nD))
    product_ij = r_in @ r_jn.T
    # LAPACK raises on numbers that are not finite, of which the run is to say itself that it has them.
    u_ik, s_k, v_kj = torch.linalg.svd(product_ij.nan_to_num(0.0, 0.0, 0.0), full_matrices=False)
    kept_k = s_k > s_k[0] * torch.finfo(s_k.dtype).eps * max(product_ij.shape)
    return q_Ei @ (u_ik * kept_k) @ v_kj @ q_Dj.T


def gram(a_nE: Tensor, b_nD: Tensor, valid_n: Tensor) -> Tensor:
    """||cosines(A) - cosines(B)||_F^2 / n^2, not centred."""
    a_nn, b_nn = (x @ x.T for x in (F.normalize(states, dim=1) * valid_n[:, None] for states in (a_nE, b_nD)))
    return (a_nn - b_nn).square().sum() / valid_n.sum().clamp(min=1).square()


def cka(a_nE: Tensor, b_nD: Tensor, valid_n: Tensor) -> Tensor:
    """1 - linear CKA: the cosine of the two matrices of inner products, after centring."""
    a_nn, b_nn = (x @ x.T for x in (_shape(a_nE, valid_n), _shape(b_nD, valid_n)))
    return 1 - (a_nn * b_nn).sum() / (_frobenius(a_nn) * _frobenius(b_nn))


def projection(a_nE: Tensor, b_nE: Tensor, valid_n: Tensor) -> Tensor:
    """||A - B||_F^2 / (n E) of states B that have been mapped to the teacher's width."""
    return ((a_nE - b_nE).square().mean(1) * valid_n).sum() / valid_n.sum().clamp(min=1)


def _shape(x_nD: Tensor, valid_n: Tensor) -> Tensor:
    """Centred, with Frobenius norm 1; what does not count is 0."""
    mean_D = (valid_n @ x_nD) / valid_n.sum().clamp(min=1)
    x_nD = (x_nD - mean_D) * valid_n[:, None]
    return x_nD / _frobenius(x_nD)


def _frobenius(x: Tensor) -> Tensor:
    """The norm, above 0. That of torch.linalg is off by 1e-4 on a CPU if there are millions of float32."""
    return x.square().sum().clamp(min=torch.finfo(x.dtype).tiny).sqrt()


MEASURES: dict[Form, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "procrustes": procrustes,
    "gram": gram,
    "cka": cka,
    "projection": projection,
}

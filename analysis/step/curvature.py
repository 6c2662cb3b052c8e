"""Curvature along directions, from differences of the training gradient, and the largest eigenvalue of a Hessian as Adam's
preconditioner sees it.

What training follows is a field of gradients g(p), not always the gradient of a number: TFSD's weights are detached. Its Jacobian
J is then no Hessian, and need not be symmetric; d'Jd is still what moving along d does to the slope along d. Eigenvalues by
Lanczos need a symmetric matrix, and so a loss that is a plain function of the parameters.

Vectors are lists of tensors shaped as the parameters; P stands for Adam's denominator sqrt(v) + eps, elementwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from stability.measure.edge import dot

Vector = Sequence[Tensor]
Product = Callable[[Vector], list[Tensor]]
Gradient = Callable[[Vector], list[Tensor]]
"""From where the parameters are to the gradient there."""
NEAR = 1e-3
"""Distance from the middle of a difference of gradients, as a share of the parameters' norm: about a tenth of a usual step, and
far above the rounding of float32."""
TOLERANCE = 1e-2
"""Relative, of the eigenvalue: signals differ by factors."""


def hessian_product(loss: Callable[[], Tensor], parameters: Vector) -> Product:
    """The function v -> H v, by differentiating twice. ``loss`` is evaluated once, here; its graph stays in memory."""
    gradient = torch.autograd.grad(loss(), parameters, create_graph=True, allow_unused=True, materialize_grads=True)

    def product(vector: Vector) -> list[Tensor]:
        found = torch.autograd.grad(
            gradient, parameters, list(vector), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return [each.detach() for each in found]

    return product


def along(gradient: Gradient, place: Vector, direction: Vector) -> float:
    """d'Jd at ``place``, by a central difference of the gradient over NEAR of the parameters' norm; NaN if ``direction`` is 0."""
    length = float(dot(direction, direction)) ** 0.5
    if not length:
        return math.nan
    share = NEAR * float(dot(place, place)) ** 0.5 / length
    ahead, behind = (
        gradient([p + sign * share * d for p, d in zip(place, direction, strict=True)]) for sign in (1, -1)
    )
    return float(dot([a - b for a, b in zip(ahead, behind, strict=True)], direction)) / (2 * share)


def gradient_curvature(gradient: Gradient, place: Vector, denominators: Vector) -> float:
    """The curvature at ``place`` along the preconditioned gradient s = P^-1 g, as s'Js / (s'Ps): where J is symmetric, a Rayleigh
    quotient of P^-1/2 J P^-1/2, comparable with its largest eigenvalue (after arXiv 2506.04805). NaN if the gradient is 0."""
    step = [g / p for g, p in zip(gradient(place), denominators, strict=True)]
    size = float(dot(step, [s * p for s, p in zip(step, denominators, strict=True)]))
    return along(gradient, place, step) / size if size else math.nan


def preconditioned_sharpness(product: Product, denominators: Vector, *, most: int = 60) -> float | None:
    """The largest eigenvalue of P^-1/2 H P^-1/2, by Lanczos with at most ``most`` restarts; None if it has not converged then.

    With Adam and full batches it settles at :func:`threshold` (arXiv 2207.14484).
    """
    roots = [p.sqrt() for p in denominators]
    sizes = [p.numel() for p in denominators]
    count = sum(sizes)

    def multiply(flat: np.ndarray) -> np.ndarray:
        pieces = torch.from_numpy(np.ascontiguousarray(flat, dtype=np.float64).ravel()).split(sizes)
        vector = [x.to(r).view_as(r) / r for x, r in zip(pieces, roots, strict=True)]
        found = [x / r for x, r in zip(product(vector), roots, strict=True)]
        return torch.cat([x.double().flatten().cpu() for x in found]).numpy()

    start = np.random.default_rng(0).normal(size=count)
    operator = LinearOperator((count, count), matvec=multiply, dtype=np.float64)
    try:
        values = eigsh(
            operator,
            k=1,
            which="LA",
            tol=TOLERANCE,
            v0=start,
            maxiter=most,
            return_eigenvectors=False,
            ncv=min(count, 12),
        )
    except ArpackError:
        return None
    return float(values[0])


def threshold(lr: float, beta1: float) -> float:
    """The sharpness above which Adam with this rate and beta1 diverges on a quadratic: (2 + 2 beta1) / ((1 - beta1) lr)."""
    return (2 + 2 * beta1) / ((1 - beta1) * lr)

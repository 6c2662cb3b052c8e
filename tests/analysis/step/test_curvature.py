"""Curvatures against a dense Hessian, and the threshold of Adam against a simulation."""

import numpy as np
import pytest
import torch

from analysis.step.curvature import along, gradient_curvature, hessian_product, preconditioned_sharpness, threshold


@pytest.fixture
def network():
    """A network of 197 parameters in float64 with its loss."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Linear(8, 12), torch.nn.Tanh(), torch.nn.Linear(12, 6), torch.nn.Linear(6, 1)
    ).double()
    x, y = torch.randn(40, 8, dtype=torch.float64), torch.randn(40, 1, dtype=torch.float64)
    return list(layers.parameters()), lambda: ((layers(x) - y) ** 2).mean() + torch.sin(3 * layers(x)).mean()


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors]).numpy()


@pytest.fixture
def dense(network):
    parameters, loss = network
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss(), parameters, create_graph=True)])
    rows = [
        torch.autograd.grad(g, parameters, retain_graph=True, materialize_grads=True, allow_unused=True)
        for g in gradient
    ]
    return np.stack([flat(row) for row in rows])


def test_the_product_and_the_curvature_along_a_direction(network, dense):
    parameters, loss = network
    product = hessian_product(loss, parameters)
    direction = [torch.randn_like(p) for p in parameters]
    d = flat(direction)
    assert flat(product(direction)) == pytest.approx(dense @ d, rel=1e-9, abs=1e-12)
    assert along(product, direction) == pytest.approx(d @ dense @ d)


def test_the_preconditioned_sharpness_is_the_largest_eigenvalue_not_the_one_of_largest_size(network, dense):
    parameters, loss = network
    for sign in (1.0, -1.0):  # of -H the largest eigenvalue is not the one that power iteration finds
        product = hessian_product(lambda sign=sign: sign * loss(), parameters)
        denominators = [torch.rand_like(p) + 0.05 for p in parameters]
        root = np.sqrt(flat(denominators))
        values = np.linalg.eigvalsh(sign * dense / root[:, None] / root)
        assert preconditioned_sharpness(product, denominators) == pytest.approx(values[-1], rel=1e-2)


def test_the_curvature_along_the_gradient_is_a_rayleigh_quotient(network, dense):
    parameters, loss = network
    gradient = list(torch.autograd.grad(loss(), parameters))
    denominators = [torch.rand_like(p) + 0.05 for p in parameters]
    p, g = flat(denominators), flat(gradient)
    found = gradient_curvature(hessian_product(loss, parameters), gradient, denominators)
    assert found == pytest.approx((g / p) @ dense @ (g / p) / ((g / p) @ g))
    values = np.linalg.eigvalsh(dense / np.sqrt(p)[:, None] / np.sqrt(p))
    assert values[0] <= found <= values[-1]


@pytest.mark.parametrize(("beta1", "limit"), [(0.0, 2.0), (0.5, 6.0), (0.9, 38.0), (0.95, 78.0)])
def test_the_threshold_is_where_momentum_diverges_on_a_parabola(beta1, limit):
    assert threshold(1.0, beta1) == pytest.approx(limit)

    def size_after(curvature):
        x, m = 1.0, 0.0
        for _ in range(20_000):
            m = beta1 * m + (1 - beta1) * curvature * x
            x -= m
            if abs(x) > 1e6:
                break
        return abs(x)

    assert size_after(0.98 * limit) < 1e-3
    assert size_after(1.02 * limit) > 1e3

"""Measurements of how near the edge a step came, against definitions in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stability.measure.edge import adam_values, cosine, dot, ghost_radius, kappa, moments_of, noise_scale
from stability.measure.norms import GroupNorms

BETAS, EPS = (0.9, 0.95), 1e-8


@given(st.floats(0.01, 10), st.floats(0.01, 3), st.floats(-2, 2))
def test_on_a_parabola_kappa_tells_where_the_loss_is_back(curvature, step, at):
    """L = c x^2 / 2 from x: the loss is back at its start after 1 / (1 - kappa) times the step."""
    gradient = curvature * at
    if abs(gradient) < 1e-3:
        return
    d = -step * gradient

    def loss(x):
        return torch.tensor(curvature * x * x / 2, dtype=torch.float64)

    found = float(kappa(loss(at), loss(at + d), torch.tensor(gradient * d, dtype=torch.float64)))
    assert found == pytest.approx(1 - curvature * step / 2, abs=1e-9)
    if found < 1 - 1e-6:
        back = at + d / (1 - found)
        assert float(loss(back)) == pytest.approx(float(loss(at)), rel=1e-6)


def test_kappa_of_a_step_uphill_means_nothing():
    one = torch.ones(())
    assert math.isnan(kappa(one, 2 * one, one)) and math.isnan(kappa(one, 2 * one, 0 * one))


def test_the_spread_of_logit_changes():
    generator = np.random.default_rng(0)
    before, after = generator.normal(size=(2, 30, 50))
    spread = np.ptp(after - before, axis=1) / np.pi
    found = ghost_radius(torch.tensor(before), torch.tensor(after))
    assert float(found["max"]) == pytest.approx(spread.max())
    assert float(found["p50"]) == pytest.approx(np.quantile(spread, 0.5), rel=1e-5)
    assert float(found["p99"]) == pytest.approx(np.quantile(spread, 0.99), rel=1e-5)
    shifted = ghost_radius(torch.tensor(before), torch.tensor(after) + torch.arange(30)[:, None])
    assert float(shifted["max"]) == pytest.approx(spread.max()), "what all logits of a token gain changes nothing"


def test_products_and_cosines():
    generator = torch.Generator().manual_seed(0)
    first, second = ([torch.randn(3, 4, generator=generator), torch.randn(5, generator=generator)] for _ in range(2))
    a, b = (torch.cat([t.double().flatten() for t in tensors]) for tensors in (first, second))
    assert float(dot(first, second)) == pytest.approx(float(a @ b))
    assert float(cosine(first, second)) == pytest.approx(float(a @ b / a.norm() / b.norm()))


def stepped(gradients, shape=(4, 3)):
    """Parameters after Adam steps with these gradients, and the optimizer."""
    parameters = [torch.nn.Parameter(torch.ones(shape)), torch.nn.Parameter(torch.ones(5))]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=BETAS, eps=EPS, weight_decay=0.0)
    for pair in gradients:
        for parameter, gradient in zip(parameters, pair, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return parameters, optimizer


def test_adams_values_are_those_of_a_plain_loop():
    generator = torch.Generator().manual_seed(1)
    gradients = [[torch.randn(4, 3, generator=generator), torch.randn(5, generator=generator)] for _ in range(7)]
    gradients[-1][0] *= 10
    parameters, optimizer = stepped(gradients)
    values = adam_values(moments_of(optimizer, parameters), gradients[-1], {"embedding": [0], "norm": [1]})
    ratios, updates, roots = [], [], []
    for which in (0, 1):
        m = v = np.zeros(gradients[0][which].shape)
        for pair in gradients:
            g = pair[which].double().numpy()
            m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        root = np.sqrt(v / (1 - 0.95**7))
        ratios.append(np.sqrt(np.mean((g / root) ** 2)))
        updates.append((m / (1 - 0.9**7) / (root + EPS)).ravel())
        roots.append(root.max())
    assert float(values["adam_rms/embedding"]) == pytest.approx(ratios[0], rel=1e-5)
    assert float(values["adam_rms/norm"]) == pytest.approx(ratios[1], rel=1e-5)
    assert float(values["adam/sign_like"]) == pytest.approx(np.mean(np.abs(np.concatenate(updates)) > 0.9))
    assert float(values["adam/root_v_max"]) == pytest.approx(max(roots), rel=1e-5)


def test_the_first_step_is_all_sign_and_a_jump_is_bounded():
    """RMS_t is 1 at the first step, and at most 1 / sqrt(1 - beta2) at any."""
    first = [[torch.full((4, 3), 0.1), torch.full((5,), -2.0)]]
    parameters, optimizer = stepped(first)
    values = adam_values(moments_of(optimizer, parameters), first[0], {"all": [0, 1]})
    assert float(values["adam_rms/all"]) == pytest.approx(1, rel=1e-5)
    assert float(values["adam/sign_like"]) == 1
    jump = first * 300 + [[1e6 * g for g in first[0]]]
    parameters, optimizer = stepped(jump)
    values = adam_values(moments_of(optimizer, parameters), jump[-1], {"all": [0, 1]})
    assert float(values["adam_rms/all"]) == pytest.approx(1 / math.sqrt(1 - BETAS[1]), rel=1e-3)


def test_another_optimizer_has_no_such_values():
    parameters = [torch.nn.Parameter(torch.ones(3))]
    assert moments_of(torch.optim.SGD(parameters, lr=0.1), parameters) is None
    assert moments_of(torch.optim.AdamW(parameters), parameters) is None, "no step has been taken yet"


def test_the_noise_scale_is_unbiased():
    """Gradients of tokens with mean g and variance 1 in each of 1,000 dimensions: S = 1,000 and |g|^2 = 10."""
    generator = np.random.default_rng(0)
    mean = np.full(1000, 0.1)
    found = []
    for _ in range(400):
        tokens = mean + generator.normal(size=(8, 1000))
        small, big = tokens[:2].mean(0), tokens.mean(0)
        squares = (torch.tensor(float(x @ x)) for x in (small, big))
        found.append(noise_scale(*squares, torch.tensor(2.0), torch.tensor(8.0)))
    square, variance = (
        np.mean([float(f[name]) for f in found]) for name in ("noise/gradient_square", "noise/variance")
    )
    assert square == pytest.approx(10, abs=1.5)
    assert variance == pytest.approx(1000, rel=0.02)


def test_what_is_not_finite_stays_in_its_group():
    norms = GroupNorms({"a": [0, 1], "b": [2], "c": [3]}, [torch.zeros(1)] * 4)
    norm_G, total = norms(torch.tensor([3.0, math.inf, 2.0, math.nan]))
    assert norm_G[0] == math.inf and norm_G[1] == 2 and math.isnan(norm_G[2])
    assert math.isnan(total)

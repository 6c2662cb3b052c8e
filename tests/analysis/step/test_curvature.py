"""Curvatures against a dense Hessian, and the threshold of Adam against a simulation."""

import math

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GPT2Config

from analysis.step.curvature import along, gradient_curvature, hessian_product, preconditioned_sharpness, threshold
from analysis.step.whole_loss import NegativeLogLikelihood, whole_loss
from model.chunked import chunked_loss
from model.configuration import SwapHeadConfig
from model.head_metric import MetricHead
from model.modeling import new_model
from model.objective_tfsd import TFSD
from model.objectives import WithPenalties
from stability.intervene.max_z import MaxZ
from stability.intervene.stages import penalties
from stability.intervene.z_loss import ZLoss
from stability.measure.edge import dot


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


def field(parameters, loss):
    """The gradient of a loss as a function of the parameters."""

    def gradient(place):
        with torch.no_grad():
            for parameter, value in zip(parameters, place, strict=True):
                parameter.copy_(value)
        return list(torch.autograd.grad(loss(), parameters))

    return gradient


def copied(parameters):
    return [p.detach().clone() for p in parameters]


def test_the_product_and_the_curvature_along_a_direction(network, dense):
    parameters, loss = network
    direction = [torch.randn_like(p) for p in parameters]
    d = flat(direction)
    assert flat(hessian_product(loss, parameters)(direction)) == pytest.approx(dense @ d, rel=1e-9, abs=1e-12)
    found = along(field(parameters, loss), copied(parameters), direction)
    assert found == pytest.approx(d @ dense @ d, rel=1e-3)
    assert math.isnan(along(field(parameters, loss), copied(parameters), [0 * d for d in direction]))


def test_of_tfsd_on_a_metric_head_the_curvature_is_that_of_its_gradient_and_not_of_a_hessian():
    torch.manual_seed(0)
    head = MetricHead(4, 9, MetricHead.Options(scale=0.5)).double()
    torch.nn.init.normal_(head.weight)
    h_ND, y_N = torch.randn(7, 4, dtype=torch.float64, requires_grad=True), torch.randint(9, (7,))
    parameters = [head.weight, h_ND]
    objective = TFSD(TFSD.Options())
    gradient = field(parameters, lambda: chunked_loss(head, objective, h_ND, y_N).objective_sum)
    trained = flat(gradient(copied(parameters)))
    direction = [torch.randn_like(p) for p in parameters]
    d = flat(direction)

    def jacobian(detach):
        """Of the gradient sum_N c_N grad(-log P_y), with c_N moving or not."""
        z_NV = head(h_ND).double()
        nll_N = torch.nn.functional.cross_entropy(z_NV, y_N, reduction="none")
        true_N = z_NV.gather(1, y_N[:, None]).squeeze(1)
        others_N = z_NV.scatter(1, y_N[:, None], -math.inf).logsumexp(1)
        c_N = (1 - true_N.exp()) / (1 + others_N.exp())
        field_of = torch.autograd.grad(nll_N, parameters, c_N.detach() if detach else c_N, create_graph=True)
        assert flat(field_of) == pytest.approx(trained, rel=1e-6, abs=1e-9)
        rows = [torch.autograd.grad(x, parameters, retain_graph=True) for g in field_of for x in g.flatten()]
        return np.stack([flat(row) for row in rows])

    true, frozen = jacobian(detach=False), jacobian(detach=True)
    assert not np.allclose(true, true.T, rtol=0.05, atol=0.05), "the gradient is that of no function"
    found = along(gradient, copied(parameters), direction)
    assert found == pytest.approx(d @ true @ d, rel=1e-3)
    assert abs(found - d @ frozen @ d) > 0.05 * abs(found)


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
    found = gradient_curvature(field(parameters, loss), copied(parameters), denominators)
    assert found == pytest.approx((g / p) @ dense @ (g / p) / ((g / p) @ g), rel=1e-3)
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


HEADS = {
    "linear": {},
    "metric": {"abstain": True},
    "cosine": {"scale": 4.0, "margin": 0.3},
    "harmonic": {},
    "mixture": {},
}


SMOOTHED = {"kind": "ce", "label_smoothing": 0.1}
BY_ROWS = [
    ("cosine", {"kind": "confidence_penalty"}),
    ("linear", {"kind": "virtual_teacher", "alpha": 0.5, "temperature": 2.0}),
    ("harmonic", {"kind": "distill", "teacher": "another"}),
]


@pytest.mark.parametrize(("head", "options"), [*((head, SMOOTHED) for head in HEADS), *BY_ROWS], ids=str)
def test_the_loss_with_all_logits_is_the_one_that_is_trained_with_its_penalties(head, options):
    torch.manual_seed(0)  # a direction along which no other logit becomes the largest
    text = GPT2Config(vocab_size=23, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None)
    model = new_model(
        SwapHeadConfig(text, head={"kind": head} | HEADS[head], objective=options, n_classes=20), seed=3
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) / 5)
    if model.objective.teacher is not None:
        model.objective.teacher.use(new_model(SwapHeadConfig(text, n_classes=20), seed=4), 20)
    remedies = {"z": ZLoss(ZLoss.Options(weight=0.3)), "max": MaxZ(MaxZ.Options(weight=0.2))}
    model.penalties, model.penalised_evaluation = penalties(remedies), True
    x_BT, y_BT = torch.randint(20, (2, 8)), torch.randint(20, (2, 8))
    y_BT[0, 3] = -100
    parameters = list(model.parameters())

    def trained():
        return model(input_ids=x_BT, shift_labels=y_BT, skip_logits=True).loss

    def whole():
        return whole_loss(model, WithPenalties(model.objective, model.penalties), x_BT, y_BT)

    assert whole().item() == pytest.approx(trained().item(), rel=1e-5)
    ours, theirs = (torch.autograd.grad(loss(), parameters) for loss in (whole, trained))
    assert flat(ours) == pytest.approx(flat(theirs), rel=1e-3, abs=1e-4)
    direction = [torch.randn_like(p) for p in parameters]
    with sdpa_kernel(SDPBackend.MATH):
        product = hessian_product(whole, parameters)
    exact = float(dot(direction, product(direction)))
    assert along(field(parameters, trained), copied(parameters), direction) == pytest.approx(exact, rel=0.02)
    plain = whole_loss(model, NegativeLogLikelihood(None), x_BT, y_BT)
    model.penalties = ()
    nll = model(input_ids=x_BT, shift_labels=y_BT, skip_logits=True).losses.nll_sum / 15
    assert plain.item() == pytest.approx(nll.item(), rel=1e-5)

"""Penalties on logits against naive float64 definitions: values and gradients, for every kind of head, kernel and precision."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.chunked import chunked_loss
from model.heads import Head
from model.objectives import Penalty, WithPenalties
from stability.intervene.max_z import MaxZ
from stability.intervene.repel import Repel
from stability.intervene.stages import penalties
from stability.intervene.z_loss import ZLoss
from tests.model import naive
from tests.model.test_objectives import assert_same, data, gradients, make, naive_logits

SHAPES = {"V": st.integers(2, 40), "D": st.integers(1, 12), "N": st.integers(1, 30), "seed": st.integers(0, 10_000)}
HEADS = {
    "linear": ("linear", {}),
    "biased": ("linear", {"bias": True}),
    "capped": ("linear", {"bias": True, "soft_cap": 3.0}),
    "metric": ("metric", {"scale": 0.3}),
    "learned": ("metric", {"scale": "learned"}),
}


class Plain(Head):
    """A head that the loss knows nothing about: its gradients come by autograd."""

    def logits(self, f_CD, w_VD):
        return f_CD @ w_VD.T + 0.1 * (f_CD @ w_VD.T).sin()


def head_and_logits(name, D, V, seed, dtype=torch.float64):
    """A head with random parameters, and its naive logits as a function of hidden states and weight."""
    if name == "plain":
        head = Plain(D, V, Head.Options()).to(dtype)
        return head, lambda h, w: h @ w.T + 0.1 * (h @ w.T).sin()
    kind, options = HEADS[name]
    head, _ = make(kind, "ce", D, V, options, dtype=dtype)
    if head.bounded:
        return head, lambda h, w: naive.metric_logits(h, w, head.scale())
    if head.bias is not None:
        torch.nn.init.normal_(head.bias, generator=torch.Generator().manual_seed(seed))

    def logits(h, w):
        z = h @ w.T if head.bias is None else h @ w.T + head.bias.to(h.dtype)
        return z if head.soft_cap is None else head.soft_cap * (z / head.soft_cap).tanh()

    return head, logits


def penalised(*interventions, objective="ce", options=None):
    _, usual = make("linear", objective, 1, 2, {}, options)
    return WithPenalties(usual, penalties({str(n): i for n, i in enumerate(interventions)}))


def z_loss(weight, gauge="absolute"):
    return ZLoss(ZLoss.Options(weight=weight, gauge=gauge))


def max_z(weight):
    return MaxZ(MaxZ.Options(weight=weight))


@pytest.mark.parametrize("name", [*HEADS, "plain"])
@given(**SHAPES, rows=st.integers(1, 31), smoothing=st.sampled_from([0.0, 0.1]))
def test_penalties_are_what_they_are_defined_as(name, V, D, N, seed, rows, smoothing):
    head, logits = head_and_logits(name, D, V, seed)
    h_ND, y_N = data(V, D, N, seed, head)
    objective = penalised(z_loss(1e-2), max_z(3e-2), options={"label_smoothing": smoothing})
    losses = chunked_loss(head, objective, h_ND, y_N, statistics=True, rows=rows)
    z_NV = logits(h_ND, head.weight)
    parts = 1e-2 * z_NV.logsumexp(1).square(), 3e-2 * z_NV.amax(1).square()
    expected = naive.label_smoothed(z_NV, y_N, smoothing) + sum(parts)
    torch.testing.assert_close(losses.objective_N, expected.detach(), rtol=1e-9, atol=1e-10)
    for number, part in enumerate(parts):
        found = losses.statistics[f"intervention/{number}/penalty"]
        torch.testing.assert_close(found, part.detach(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(losses.nll_sum, naive.cross_entropy(z_NV, y_N).sum(), rtol=1e-9, atol=1e-10)
    leaves = (h_ND, *head.parameters())
    assert_same(gradients(losses.objective_sum, *leaves), gradients(expected.sum(), *leaves), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("objective", ["ce", "weighted_ce"])
@given(**SHAPES)
def test_the_gauge_of_a_metric_head_is_its_row_constant(objective, V, D, N, seed):
    """Relative: log Z of 2 g h w - g |w|^2 alone; the two gauges differ in value and gradient by what -g |h|^2 makes of them."""
    head, logits = head_and_logits("metric", D, V, seed)
    h_ND, y_N = data(V, D, N, seed, head)
    z_NV = logits(h_ND, head.weight)
    shift_N = -head.scale() * h_ND.square().sum(1)
    usual = naive.cross_entropy(z_NV, y_N)
    if objective == "weighted_ce":
        usual = naive.tfsd_weight(z_NV, y_N).detach() * usual
    leaves = (h_ND, *head.parameters())
    for gauge, log_z_N in (("absolute", z_NV.logsumexp(1)), ("relative", z_NV.logsumexp(1) - shift_N)):
        loss = chunked_loss(head, penalised(z_loss(1e-2, gauge), objective=objective), h_ND, y_N).objective_sum
        expected = (usual + 1e-2 * log_z_N.square()).sum()
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-10)
        wanted = torch.autograd.grad(expected, leaves, retain_graph=True)
        assert_same(gradients(loss, *leaves), wanted, rtol=1e-7, atol=1e-9)


@given(**SHAPES, g=st.sampled_from([0.05, 0.5, 2.0]))
def test_repulsion_is_the_surprise_of_tfsd_s_target(V, D, N, seed, g):
    """weight times -log Q_y, differentiated, where Q is P's softmax with the true logit 0."""
    head, objective = make("metric", "tfsd", D, V, {"scale": g})
    h_ND, y_N = data(V, D, N, seed, head)
    repel = penalties({"repel": Repel(Repel.Options(weight=0.3))})
    loss = chunked_loss(head, WithPenalties(objective, repel), h_ND, y_N).objective_sum
    z_NV = naive_logits(head, h_ND)
    with_zero_NV = z_NV.scatter(1, y_N[:, None], 0.0)
    expected = (naive.tfsd(z_NV, y_N) - 0.3 * with_zero_NV.log_softmax(1)[torch.arange(N), y_N]).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-10)
    leaves = (h_ND, *head.parameters())
    assert_same(gradients(loss, *leaves), gradients(expected, *leaves), rtol=1e-7, atol=1e-9)


def test_max_z_pulls_at_one_logit_of_a_token():
    """Logits 3 and 1, weight 0.5: the penalty is 4.5, its gradient 3 at the first; the target's if that is the largest."""
    for target in (0, 1):
        head, objective = head_and_logits("linear", 1, 3, 0)[0], penalised(max_z(0.5))
        with torch.no_grad():
            head.weight[:, 0] = torch.tensor([3.0, 1.0, -5.0])
        h_ND, y_N = torch.ones(1, 1, dtype=torch.float64), torch.tensor([target])
        with_it, without = (chunked_loss(head, o, h_ND, y_N).objective_sum for o in (objective, objective.objective))
        assert float((with_it - without).detach()) == pytest.approx(4.5)
        found = gradients(with_it, head.weight)[0] - gradients(without, head.weight)[0]
        assert found.flatten().tolist() == pytest.approx([3.0, 0.0, 0.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_largest_negative_keeps_its_gradient_where_all_others_have_none(dtype):
    """A target 500 above the rest: the cross-entropy's gradient for the negatives is 0, that of a penalty on them is not."""
    head, _ = head_and_logits("linear", 2, 4, 0, dtype=torch.float32)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[500.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 0.0]]))
    penalty = Penalty("pull", lambda t: 0.5 * t.largest_negative, uses_largest=True)
    objective = WithPenalties(penalised().objective, [penalty])
    with torch.autocast("cpu", dtype=torch.float16, enabled=dtype == torch.float16):
        h_ND = torch.tensor([[1.0, 0.0]])
        loss = chunked_loss(head, objective, h_ND, torch.tensor([0])).objective_sum
    torch.testing.assert_close(
        gradients(loss, head.weight)[0][:, 0], torch.tensor([0.0, 0.5, 0.0, 0.0]), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(
    ("name", "kernel", "dtype"),
    [
        *itertools.product(["biased", "capped", "metric", "plain"], ["torch"], [torch.bfloat16, torch.float16]),
        ("biased", "triton", torch.bfloat16),
        ("metric", "triton", torch.float16),
    ],
)
def test_penalties_in_half_precision(name, kernel, dtype):
    """Under autocast: within the rounding of the inputs of the float64 definition on those same rounded inputs.

    Left out are tokens whose two largest logits are so close that rounding decides which is larger.
    """
    V, D, N = 60, 16, 150
    head, logits = head_and_logits(name, D, V, 0, dtype=torch.float32)
    h_ND, y_N = data(V, D, N, 0, head, spread=0.5, dtype=torch.float32)
    g = head.scale() if head.bounded else 0.5
    h64, w64 = ((x.to(dtype).double()).detach().requires_grad_() for x in (2 * g * h_ND, head.weight))
    z_NV = logits(h64 / (2 * g), w64)
    first_N, second_N = z_NV.detach().topk(2, dim=1).values.unbind(1)
    y_N[(first_N - second_N) < 0.05 * (1 + first_N.abs())] = -100
    kept = y_N >= 0
    assert int(kept.sum()) > N / 3
    head.kernel = kernel
    with torch.autocast("cpu", dtype=dtype):
        losses = chunked_loss(head, penalised(z_loss(1e-2), max_z(5e-2)), h_ND, y_N, rows=64)
    expected = naive.cross_entropy(z_NV[kept], y_N[kept]) + 1e-2 * z_NV[kept].logsumexp(1).square()
    expected = (expected + 5e-2 * z_NV[kept].amax(1).square()).sum()
    torch.testing.assert_close(losses.objective_sum.double(), expected, rtol=4e-3, atol=0)
    dh, dw = gradients(expected, h64, w64)
    actual = gradients(losses.objective_sum, h_ND, head.weight)
    for a, e in zip(actual, (2 * g * dh, dw), strict=True):
        assert float((a.double() - e).norm() / e.norm()) < 2.5 * torch.finfo(dtype).eps


def test_the_triton_kernel_and_torch_agree_in_float32():
    for name in ("biased", "capped", "metric"):
        head, _ = head_and_logits(name, 8, 60, 0, dtype=torch.float32)
        h_ND, y_N = data(60, 8, 20, 0, head, dtype=torch.float32)
        head.n_classes, y_N = 50, y_N % 50
        found = []
        for head.kernel in ("torch", "triton"):
            loss = chunked_loss(head, penalised(max_z(1e-2)), h_ND, y_N, rows=16).objective_sum
            found.append((loss, *gradients(loss, h_ND, *head.parameters())))
        assert_same(*found, rtol=1e-4, atol=1e-5)
        assert bool((found[0][2][50:] == 0).all()), "padding is never the largest"

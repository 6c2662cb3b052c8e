"""Objectives that read all logits of a token, against naive float64 definitions."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given

from model import OBJECTIVES, Objective
from model.chunked import chunked_loss
from model.objectives import Penalty, WithPenalties, log_partition

from . import naive
from .test_objectives import SHAPES, assert_same, data, gradients, make, naive_logits

HEADS = [
    ("linear", {"bias": True}),
    ("linear", {"soft_cap": 3.0}),
    ("metric", {"scale": "learned"}),
    ("metric", {"scale": 0.05, "centroid_norm": "layernorm"}),
    ("metric", {"abstain": True}),
    ("cosine", {"margin": 0.3}),
    ("harmonic", {}),
    ("mixture", {}),
    ("von_mises_fisher", {}),
]


class SmoothedByRows(Objective):
    """Label smoothing of 0.1 and a z-loss, from the rows."""

    uses_rows = True

    def loss(self, t):
        smoothed = F.cross_entropy(t.rows, t.target, reduction="none", label_smoothing=0.1)
        return smoothed + 0.01 * t.rows.logsumexp(1).square()


def random_head(head_kind, options, kind, D, V, objective_options=None, dtype=torch.float64):
    head, objective = make(head_kind, kind, D, V, options, objective_options, dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)).to(dtype))
    return head, objective


@pytest.mark.parametrize(("head_kind", "options"), HEADS, ids=str)
@given(**SHAPES)
def test_by_rows_it_is_what_it_is_by_numbers_per_token(head_kind, options, V, D, N, seed):
    head, by_numbers = random_head(head_kind, options, "ce", D, V, {"label_smoothing": 0.1, "z_loss": 0.01})
    h_ND, y_N = data(V, D, N, seed, head)
    y_N[0] = -100
    found = []
    for objective in (by_numbers, SmoothedByRows(None)):
        losses = chunked_loss(head, objective, h_ND, y_N, statistics=True, rows=4)
        found.append((losses.objective_sum, losses.nll_sum, *losses.statistics.values()))
        found[-1] += gradients(losses.objective_sum, h_ND, *head.parameters())
    for a, e in zip(found[1], found[0], strict=True):
        assert float((a - e).detach().norm()) <= 1e-8 * float(e.detach().norm()) + 1e-10


def test_penalties_add_to_it():
    head, by_numbers = random_head("metric", {}, "ce", 6, 20, {"label_smoothing": 0.1, "z_loss": 0.01})
    h_ND, y_N = data(20, 6, 30, 0, head)
    penalty = Penalty("intervention/z_loss/penalty", lambda t: (log_partition(t) - t.shift).square(), uses_mean=True)
    largest = Penalty("intervention/max_z/penalty", lambda t: t.largest.square() + t.mean, True, True)
    found = []
    for objective in (by_numbers, SmoothedByRows(None)):
        losses = chunked_loss(head, WithPenalties(objective, [penalty, largest]), h_ND, y_N, rows=7)
        found.append((losses.objective_sum, *gradients(losses.objective_sum, h_ND, head.weight)))
    assert_same(found[1], found[0], rtol=1e-8, atol=1e-10)


def confidence(z_NV, y_N, beta=0.3):
    return naive.cross_entropy(z_NV, y_N) - beta * torch.distributions.Categorical(logits=z_NV).entropy()


def virtual_teacher(z_NV, y_N, alpha=0.4, sure=0.9, temperature=3.0):
    teacher_NV = torch.full_like(z_NV, (1 - sure) / (z_NV.shape[1] - 1))
    teacher_NV[torch.arange(len(y_N)), y_N] = sure
    teacher_NV = (teacher_NV.log() / temperature).softmax(1)
    log_p_NV = (z_NV / temperature).log_softmax(1)
    kl_N = F.kl_div(log_p_NV, teacher_NV, reduction="none").sum(1)
    return (1 - alpha) * naive.cross_entropy(z_NV, y_N) + alpha * kl_N


NAIVE = {
    "confidence_penalty": (confidence, {"beta": 0.3}),
    "virtual_teacher": (virtual_teacher, {"alpha": 0.4, "sure": 0.9, "temperature": 3.0}),
}


@pytest.mark.parametrize("kind", NAIVE)
@pytest.mark.parametrize("head_kind", ["linear", "metric"])
@given(**SHAPES)
def test_value_and_gradient_are_those_of_the_definition(kind, head_kind, V, D, N, seed):
    definition, options = NAIVE[kind]
    head, objective = make(head_kind, kind, D, V, {}, options)
    h_ND, y_N = data(V, D, N, seed, head)
    losses = chunked_loss(head, objective, h_ND, y_N, rows=4)
    z_NV = naive_logits(head, h_ND)
    expected = definition(z_NV, y_N).sum()
    torch.testing.assert_close(losses.objective_sum, expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(losses.nll_sum, naive.cross_entropy(z_NV, y_N).sum(), rtol=1e-9, atol=1e-10)
    assert_same(gradients(losses.objective_sum, h_ND, head.weight), gradients(expected, h_ND, head.weight), 1e-6, 1e-9)


def test_a_virtual_teacher_at_temperature_1_smooths_labels():
    """Of the share e = alpha (1 - a) V / (V - 1), up to the teacher's entropy, a constant."""
    V, alpha, sure = 20, 0.4, 0.9
    head, objective = make("linear", "virtual_teacher", 6, V, {}, {"alpha": alpha, "sure": sure})
    h_ND, y_N = data(V, 6, 15, 0, head)
    own = chunked_loss(head, objective, h_ND, y_N).objective_sum
    smoothing = alpha * (1 - sure) * V / (V - 1)
    smoothed = make("linear", "ce", 6, V, {}, {"label_smoothing": smoothing})[1]
    other = chunked_loss(head, smoothed, h_ND, y_N).objective_sum
    assert_same(gradients(own, h_ND, head.weight), gradients(other, h_ND, head.weight), 1e-9, 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", NAIVE)
def test_half_precision_gradients_keep_their_digits(kind, dtype):
    """Of 2,000 classes, most with a probability below the smallest float16: as good as cross-entropy's, by numbers per token."""
    definition, options = NAIVE[kind]
    own = half_precision_error(kind, options, definition, dtype)
    assert own < 1.5 * half_precision_error("ce", {}, naive.cross_entropy, dtype) < 0.02


def half_precision_error(kind, options, definition, dtype):
    """Of the gradients of hidden states and weights, relative to float64's, which start from the same rounded numbers."""
    head, objective = make("linear", kind, 32, 2000, {}, options, torch.float32)
    h_ND, y_N = data(2000, 32, 40, 0, head, dtype=torch.float32)
    h_ND = h_ND.detach().to(dtype).requires_grad_()
    with torch.no_grad():
        head.weight.copy_(head.weight.to(dtype))
    actual = gradients(chunked_loss(head, objective, h_ND, y_N).objective_sum, h_ND, head.weight)
    exact = [x.detach().double().requires_grad_() for x in (h_ND, head.weight)]
    expected = gradients(definition(exact[0] @ exact[1].T, y_N).sum(), *exact)
    return max(float((a.double() - e).norm() / e.norm()) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("confidence_penalty", {"beta": -1.0}, "beta must be from 0 to 100, not -1.0"),
        ("virtual_teacher", {"alpha": 2.0}, "alpha must be from 0 to 1, not 2.0"),
        ("virtual_teacher", {"sure": 1.0}, "sure must be between 0 and 1, not 1.0"),
        ("virtual_teacher", {"temperature": 0.0}, "temperature must be from 0.01 to 1000, not 0.0"),
    ],
)
def test_options_that_make_no_loss_are_refused(kind, options, expected):
    with pytest.raises(ValueError, match=f"^{expected}$"):
        OBJECTIVES[kind].Options(**options)

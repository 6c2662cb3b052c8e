"""The losses whose gradient is c times that of cross-entropy, against naive float64 definitions."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model import OBJECTIVES
from model.chunked import chunked_loss
from model.objectives import TokenLogits

from . import naive
from .test_objectives import SHAPES, assert_same, data, gradients, make, naive_logits

OF_P = {
    ("focal", "gamma", 2.0): lambda p: -((1 - p) ** 2) * p.log(),
    ("focal", "gamma", 0.3): lambda p: -((1 - p) ** 0.3) * p.log(),
    ("focal", "gamma", 0.0): lambda p: -p.log(),
    ("poly1", "epsilon", 1.0): lambda p: -p.log() + (1 - p),
    ("poly1", "epsilon", -0.5): lambda p: -p.log() - 0.5 * (1 - p),
    ("gce", "q", 0.7): lambda p: (1 - p**0.7) / 0.7,
    ("gce", "q", 1.0): lambda p: 1 - p,
    ("threshold", "probability", 0.3): lambda p: (math.log(0.3) - p.log()).clamp(min=0),
}
"""Losses that are functions of p_y, by kind, option and its value."""
SPREADS = st.sampled_from([0.01, 0.3, 1.0])


def probability(z_NV, y_N):
    return z_NV.softmax(1)[torch.arange(len(y_N)), y_N]


@pytest.mark.parametrize("head_kind", ["linear", "metric"])
@pytest.mark.parametrize("which", OF_P, ids=str)
@given(**SHAPES, spread=SPREADS)
def test_value_and_gradient_are_those_of_the_function_of_p(head_kind, which, V, D, N, seed, spread):
    kind, option, value = which
    head, objective = make(head_kind, kind, D, V, {}, {option: value})
    h_ND, y_N = data(V, D, N, seed, head, spread)
    losses = chunked_loss(head, objective, h_ND, y_N)
    expected = OF_P[which](probability(naive_logits(head, h_ND), y_N)).sum()
    torch.testing.assert_close(losses.objective_sum, expected, rtol=1e-8, atol=1e-10)
    assert_same(gradients(losses.objective_sum, h_ND, head.weight), gradients(expected, h_ND, head.weight), 1e-6, 1e-9)


def anchored(z_NV, y_N, anchor, margin):
    """KL(Q || P), where Q's true logit is raised to the anchor and Q is detached."""
    level_N = (z_NV.amax(1) if anchor == "largest" else z_NV.logsumexp(1)) + margin
    return naive.tfsd(z_NV - level_N[:, None].detach(), y_N)


@pytest.mark.parametrize("head_kind", ["linear", "metric"])
@pytest.mark.parametrize("anchor", ["largest", "log_partition"])
@pytest.mark.parametrize("margin", [0.0, 1.5])
@given(**SHAPES, spread=SPREADS)
def test_tfsd_with_another_anchor_is_the_kl_divergence(head_kind, anchor, margin, V, D, N, seed, spread):
    head, objective = make(head_kind, "tfsd_anchored", D, V, {}, {"anchor": anchor, "margin": margin})
    h_ND, y_N = data(V, D, N, seed, head, spread)
    losses = chunked_loss(head, objective, h_ND, y_N)
    expected = anchored(naive_logits(head, h_ND), y_N, anchor, margin).sum()
    torch.testing.assert_close(losses.objective_sum, expected, rtol=1e-8, atol=1e-10)
    assert_same(gradients(losses.objective_sum, h_ND, head.weight), gradients(expected, h_ND, head.weight), 1e-6, 1e-9)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@given(**SHAPES, spread=SPREADS, g=st.sampled_from([0.05, 0.5]))
def test_the_mix_is_that_of_the_two_losses(share, V, D, N, seed, spread, g):
    head, objective = make("metric", "ce_tfsd", D, V, {"scale": g}, {"share": share})
    h_ND, y_N = data(V, D, N, seed, head, spread)
    losses = chunked_loss(head, objective, h_ND, y_N)
    z_NV = naive_logits(head, h_ND)
    expected = (share * naive.cross_entropy(z_NV, y_N) + (1 - share) * naive.tfsd(z_NV, y_N)).sum()
    torch.testing.assert_close(losses.objective_sum, expected, rtol=1e-8, atol=1e-10)
    assert_same(gradients(losses.objective_sum, h_ND, head.weight), gradients(expected, h_ND, head.weight), 1e-6, 1e-9)


FAMILY = [
    *OF_P,
    ("tfsd", None, None),
    ("tfsd_anchored", "margin", 0.5),
    ("tfsd_anchored", "anchor", "largest"),
    ("ce_tfsd", "share", 0.3),
]


@pytest.mark.parametrize("which", FAMILY, ids=str)
@given(seed=st.integers(0, 10_000), spread=st.sampled_from([0.1, 1.0, 4.0]))
def test_every_logit_s_gradient_is_c_times_that_of_cross_entropy(which, seed, spread):
    kind, option, value = which
    objective = OBJECTIVES[kind](OBJECTIVES[kind].Options(**({option: value} if option else {})))
    generator = torch.Generator().manual_seed(seed)
    z_NV = -spread * torch.rand(6, 9, generator=generator, dtype=torch.float64).square()
    y_N = torch.randint(0, 9, (6,), generator=generator)
    t = token_logits(z_NV.requires_grad_(), y_N)
    (actual,) = gradients(objective.loss(t).sum(), z_NV)
    (of_ce,) = gradients(naive.cross_entropy(z_NV, y_N).sum(), z_NV)
    c_N = objective.weight(t).detach()
    torch.testing.assert_close(actual, c_N[:, None] * of_ce, rtol=1e-7, atol=1e-13)


def token_logits(z_NV, y_N):
    rows = torch.arange(len(y_N))
    others_NV = z_NV.clone()
    others_NV[rows, y_N] = -torch.inf
    return TokenLogits(
        z_NV[rows, y_N], others_NV.logsumexp(1), z_NV.mean(1), others_NV.amax(1), torch.zeros_like(z_NV[:, 0])
    )


@given(st.floats(-700, 700), st.floats(-50, 50), st.floats(0, 5))
def test_with_the_log_partition_as_anchor_c_is_a_function_of_p(odds, negatives, margin):
    """c = (e^m - p) / (e^m + 1 - p): at p = 0 never 0, so there is no cold start."""
    objective = OBJECTIVES["tfsd_anchored"](OBJECTIVES["tfsd_anchored"].Options(margin=margin))
    t = of_odds(torch.tensor([odds], dtype=torch.float64), negatives)
    p, e_m = float(torch.sigmoid(t.true - t.negatives)), math.exp(margin)
    assert float(objective.weight(t)) == pytest.approx((e_m - p) / (e_m + 1 - p), rel=1e-9, abs=1e-12)


def of_odds(odds_N, negatives=0.0):
    """Tokens whose target has these log odds against the rest."""
    zero_N = torch.zeros_like(odds_N)
    return TokenLogits(odds_N + negatives, zero_N + negatives, zero_N, zero_N + negatives, zero_N)


@pytest.mark.parametrize("which", OF_P, ids=str)
def test_float32_keeps_c_and_value_where_p_is_near_0_or_1(which):
    """Against 60 digits, for log odds from -60 to 60, and finite beyond."""
    kind, option, value = which
    objective = OBJECTIVES[kind](OBJECTIVES[kind].Options(**{option: value}))
    odds_N = torch.linspace(-60, 60, 97)
    t = of_odds(odds_N)
    for odds, c, loss in zip(odds_N.tolist(), objective.weight(t).tolist(), objective.value(t).tolist(), strict=True):
        exact_value, exact_c = exactly(kind, value, odds)
        assert loss == pytest.approx(exact_value, rel=3e-5, abs=1e-36)
        assert c == pytest.approx(exact_c, rel=3e-5, abs=1e-36)
    beyond = of_odds(torch.tensor([-1e4, -300.0, 90.0, 100.0, 160.0, 300.0, 1e4]))
    assert bool(objective.weight(beyond).isfinite().all())
    assert bool(objective.value(beyond).isfinite().all())


def exactly(kind, option, odds):
    """Value and c with 60 digits."""
    with mpmath.workdps(60):
        p = 1 / (1 + mpmath.exp(-mpmath.mpf(odds)))
        losses = {
            "focal": lambda p: -((1 - p) ** option) * mpmath.log(p),
            "poly1": lambda p: -mpmath.log(p) + option * (1 - p),
            "gce": lambda p: (1 - p**option) / option,
            "threshold": lambda p: max(mpmath.mpf(0), mpmath.log(option) - mpmath.log(p)),
        }
        weights = {
            "focal": lambda p: (1 - p) ** option - option * p * (1 - p) ** (option - 1) * mpmath.log(p),
            "poly1": lambda p: 1 + option * p,
            "gce": lambda p: p**option,
            "threshold": lambda p: mpmath.mpf(p < option),
        }
        return float(losses[kind](p)), float(weights[kind](p))


@pytest.mark.parametrize("kind", ["focal", "gce", "tfsd_anchored", "ce_tfsd"])
def test_the_weight_is_reported_of_every_token(kind):
    head, objective = make("metric", kind, 6, 30)
    h_ND, y_N = data(30, 6, 40, 3, head)
    found = chunked_loss(head, objective, h_ND, y_N, statistics=True).statistics["objective/weight"]
    t = token_logits(naive_logits(head, h_ND).detach(), y_N)
    torch.testing.assert_close(found, objective.weight(t), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("focal", {"gamma": -1.0}, "gamma must be from 0 to 100, not -1.0"),
        ("poly1", {"epsilon": -2.0}, "epsilon must be above -1 and at most 100, not -2.0"),
        ("gce", {"q": 0.0}, "q must be above 0 and at most 1, not 0.0"),
        ("threshold", {"probability": 0.0}, "probability must be above 0 and at most 1, not 0.0"),
        ("tfsd_anchored", {"margin": -1.0}, "margin must be from 0 to 100, not -1.0"),
        ("ce_tfsd", {"share": 2.0}, "share must be from 0 to 1, not 2.0"),
    ],
)
def test_options_that_make_no_loss_are_refused(kind, options, expected):
    with pytest.raises(ValueError, match=f"^{expected}$"):
        OBJECTIVES[kind].Options(**options)

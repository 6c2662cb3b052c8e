"""Losses of negatives against naive float64 definitions, under every head, and beside the objective of a model."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.chunked import chunked_loss
from model.negatives import ACTIVE, LOSS, negative_loss

from . import naive
from .test_modeling import HEADS, make, tokens
from .test_objectives import HEADS_TRIED, SHAPES, assert_same, data, gradients, naive_logits
from .test_objectives import make as make_head
from .test_rows_objectives import random_head

BOUNDED = [name for name, (kind, _) in HEADS_TRIED.items() if kind == "metric"]


def hinge(h_ND, w_VD, g, margin, nearest):
    """From the distances themselves."""
    d_NV = -naive.metric_logits(h_ND, w_VD, g)
    d_NM = d_NV.sort(1).values[:, :nearest]
    return torch.where(d_NM < margin, margin - d_NM, 0.0), d_NM < margin


def of(head, kind, h_ND, margin=None, nearest=3, weight=0.7, rows=4):
    loss = negative_loss(kind, head.n_classes, weight=weight, margin=margin, nearest=nearest)
    y_N = torch.zeros(len(h_ND), dtype=torch.long)
    return chunked_loss(head, loss, h_ND, y_N, statistics=True, rows=rows)


@pytest.mark.parametrize("name", BOUNDED)
@given(**SHAPES, g=st.sampled_from([0.05, 0.5, 2.0]), quantile=st.floats(0.1, 1.0))
def test_the_hinge_is_that_of_the_nearest_distances(name, V, D, N, seed, g, quantile):
    head, _ = make_head("metric", "ce", D, V, HEADS_TRIED[name][1] | {"scale": g})
    h_ND, _ = data(V, D, N, seed, head)
    w_VD = head.weight.double()
    w_VD = w_VD - w_VD.mean(0) if head.options.centroid_norm == "centred" else w_VD
    d_NV = -naive.metric_logits(h_ND, w_VD, g).detach()
    margin = float(d_NV.flatten().quantile(quantile)) * 1.01 + 1e-3  # no distance at the kink
    terms_NM, active_NM = hinge(h_ND, w_VD, g, margin, 3)
    losses = of(head, "hinge", h_ND, margin)
    torch.testing.assert_close(losses.objective_sum, 0.7 * terms_NM.sum(), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(losses.statistics[LOSS], terms_NM.sum(1).detach(), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(losses.statistics[ACTIVE], active_NM.double().mean(1))
    expected = gradients(0.7 * terms_NM.sum(), h_ND, head.weight)
    assert_same(gradients(losses.objective_sum, h_ND, head.weight), expected, rtol=1e-7, atol=1e-9)


def test_the_hinge_of_a_learned_scale_has_its_gradient_too():
    head, _ = random_head("metric", {"scale": "learned"}, "ce", 6, 20)
    h_ND, _ = data(20, 6, 9, 0, head)
    terms_NM, _ = hinge(h_ND, head.weight, head.log_scale.exp(), 9.0, 3)
    parameters = (h_ND, head.weight, head.log_scale)
    expected = gradients(0.7 * terms_NM.sum(), *parameters)
    assert_same(gradients(of(head, "hinge", h_ND, 9.0).objective_sum, *parameters), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", HEADS_TRIED)
@given(**SHAPES)
def test_uniform_is_the_cross_entropy_towards_it(name, V, D, N, seed):
    head, _ = make_head(HEADS_TRIED[name][0], "ce", D, V, HEADS_TRIED[name][1])
    h_ND, _ = data(V, D, N, seed, head)
    each_N = -naive_logits(head, h_ND).log_softmax(1).mean(1)
    losses = of(head, "uniform", h_ND)
    torch.testing.assert_close(losses.statistics[LOSS], each_N.detach(), rtol=1e-8, atol=1e-9)
    expected = gradients(0.7 * each_N.sum(), h_ND, head.weight)
    assert_same(gradients(losses.objective_sum, h_ND, head.weight), expected, rtol=1e-6, atol=1e-9)


@given(**SHAPES, g=st.sampled_from([0.05, 0.5, 2.0]))
def test_others_is_the_nll_of_the_class_at_the_origin(V, D, N, seed, g):
    head, _ = make_head("metric", "ce", D, V, {"abstain": True, "scale": g})
    h_ND, _ = data(V, D, N, seed, head)
    each_N = -naive_logits(head, h_ND).log_softmax(1)[:, -1]
    losses = of(head, "others", h_ND)
    torch.testing.assert_close(losses.statistics[LOSS], each_N.detach(), rtol=1e-8, atol=1e-9)
    expected = gradients(0.7 * each_N.sum(), h_ND, head.weight)
    assert_same(gradients(losses.objective_sum, h_ND, head.weight), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "margin"), [("hinge", 9.0), ("uniform", None), ("others", None)])
def test_half_precision_is_near_the_definition(kind, margin, dtype):
    found = []
    for each in (torch.float64, dtype):
        head, _ = make_head("metric", "ce", 16, 40, {"abstain": True}, dtype=torch.float32)
        h_ND, _ = data(40, 16, 30, 1, head, spread=0.5)
        head = head.double() if each == torch.float64 else head
        h_ND = h_ND.detach().to(each).requires_grad_()
        losses = of(head, kind, h_ND, margin)
        found.append((losses.objective_sum, *gradients(losses.objective_sum, h_ND, head.weight)))
    for a, e in zip(found[1], found[0], strict=True):
        assert float((a.double() - e).detach().norm()) <= 0.02 * float(e.detach().norm())


@given(**SHAPES, away=st.floats(0.5, 5.0))
def test_the_nll_does_not_hold_distances_down(V, D, N, seed, away):
    """At right angles to all differences of classes a hidden state may move away from all of them."""
    head, cross_entropy = make_head("metric", "ce", D + 1, V)
    h_ND, y_N = data(V, D + 1, N, seed, head)
    found = []
    with torch.no_grad():
        head.weight[:, -1] = 0.3
        for last in (0.3, 0.3 + away):
            h_ND[:, -1] = last
            found.append((chunked_loss(head, cross_entropy, h_ND, y_N).nll_N, head(h_ND)))
    (nll_N, z_NV), (far_nll_N, far_z_NV) = found
    torch.testing.assert_close(far_nll_N, nll_N, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(z_NV - far_z_NV, torch.full_like(z_NV, away**2 / 2), rtol=1e-8, atol=1e-8)


def losses_of(model, x_BT, y_BT, negative_rows):
    return model(input_ids=x_BT, shift_labels=y_BT, skip_logits=True, statistics=True, negative_rows=negative_rows)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["hinge", "uniform", "others"])
def test_they_add_to_the_loss_and_to_nothing_else(head, kind):
    options = HEADS[head]
    if (kind == "hinge" and options["kind"] != "metric") or (kind == "others" and not options.get("abstain")):
        return
    model = make(head=head, objective="ce").train()
    model.negatives = negative_loss(kind, 120, weight=2.0, margin=1e4 if kind == "hinge" else None, nearest=5)
    x_BT, y_BT = tokens(4), tokens(4).roll(-1, 1)
    y_BT[[1, 3]] = -100
    out = losses_of(model, x_BT, y_BT, torch.tensor([1, 3]))
    alone = losses_of(model, x_BT, y_BT, None)
    assert alone.losses.negatives is None
    for name in ("objective_sum", "nll_sum", "objective_N", "nll_N"):
        assert torch.equal(getattr(out.losses, name), getattr(alone.losses, name)), name
    assert out.losses.statistics.keys() == alone.losses.statistics.keys()
    own = out.losses.negatives
    assert len(own.objective_N) == 2 * x_BT.shape[1]
    torch.testing.assert_close(2.0 * own.statistics[LOSS], own.objective_N)
    torch.testing.assert_close(out.loss, alone.loss + own.objective_sum / alone.losses.valid_N.sum())
    torch.testing.assert_close(out.losses.trained_sum, (out.loss * alone.losses.valid_N.sum()).double())
    h_BTD = model.model(input_ids=x_BT).last_hidden_state
    again = chunked_loss(
        model.lm_head.eval(), model.negatives, h_BTD[[1, 3]].flatten(0, 1), torch.zeros_like(y_BT[:2]).flatten()
    )
    if options.get("feature_norm") != "batchnorm":
        torch.testing.assert_close(again.objective_sum, own.objective_sum)


def test_a_micro_batch_may_have_none_of_them():
    model = make(objective="ce")
    model.negatives = negative_loss("hinge", 120, weight=1.0, margin=9.0, nearest=5)
    x_BT = tokens(2)
    out = losses_of(model, x_BT, x_BT.roll(-1, 1), torch.tensor([], dtype=torch.long))
    assert float(out.losses.negatives.valid_N.sum()) == 0
    assert {LOSS, ACTIVE} <= out.losses.negatives.statistics.keys()
    assert torch.equal(out.loss, losses_of(model, x_BT, x_BT.roll(-1, 1), None).loss)


def test_without_a_loss_for_them_they_are_refused():
    with pytest.raises(ValueError, match=r"negative_rows: the model has no loss for negatives"):
        losses_of(make(), tokens(), tokens(), torch.tensor([0]))

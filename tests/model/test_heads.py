"""What the heads are, mathematically."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model import HEADS
from model.head_metric import SCALES

from . import naive


def metric_head(D, V, **options):
    head = HEADS["metric"](D, V, HEADS["metric"].Options(**options)).double()
    head.reset_parameters()
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    return head


@given(
    st.integers(1, 12), st.integers(2, 30), st.sampled_from([0.01, 0.5, 3.0, "article", "linear_equivalent", "learned"])
)
def test_metric_logits_are_scaled_squared_distances(D, V, scale):
    head = metric_head(D, V, scale=scale)
    h_ND = torch.randn(5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    g = {"article": 1 / math.sqrt(8 * D), "linear_equivalent": 0.5, "learned": 0.5}.get(scale, scale)
    torch.testing.assert_close(head(h_ND), naive.metric_logits(h_ND, head.weight, g), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("g", [SCALES[0], 0.5, SCALES[1]])
@pytest.mark.parametrize("length", [1e-11, 1.0, 1e12])
def test_at_any_scale_that_is_accepted_float32_holds_the_distance_to_the_origin(g, length):
    head = HEADS["metric"](768, 2, HEADS["metric"].Options(scale=g))
    h_ND = torch.full((1, 768), length / math.sqrt(768))
    shift = float(head.shift(head.features(h_ND, torch.float32)))
    assert shift == pytest.approx(-g * length**2, rel=1e-5)


@given(st.integers(1, 12), st.integers(2, 30), st.sampled_from([0.01, 0.5, 3.0]))
def test_metric_distribution_is_that_of_a_linear_head_with_a_tied_bias(D, V, g):
    """P = softmax(2g h.w_k - g ||w_k||^2): the distance to h itself drops out (Snell et al. 2017, section 2.4)."""
    head = metric_head(D, V, scale=g)
    h_ND = torch.randn(5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    linear_NV = 2 * g * h_ND @ head.weight.T - g * head.weight.square().sum(1)
    torch.testing.assert_close(head(h_ND).softmax(1), linear_NV.softmax(1), rtol=1e-9, atol=1e-12)


def test_the_largest_metric_logit_is_zero_and_reached_at_a_centroid():
    head = metric_head(6, 20)
    logits_VV = head(head.weight)
    torch.testing.assert_close(logits_VV.diagonal(), torch.zeros(20, dtype=torch.float64), rtol=0, atol=1e-12)
    off_diagonal = logits_VV[~torch.eye(20, dtype=torch.bool)]
    assert bool((off_diagonal < 0).all())


def test_the_metric_head_does_not_break_the_softmax_bottleneck():
    """Rank of the log-probability matrix over many contexts: at most D+2 (linear: D+1), whatever the vocabulary."""
    D, V = 10, 60
    head = metric_head(D, V)
    h_ND = torch.randn(200, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert int(torch.linalg.matrix_rank(head(h_ND).log_softmax(1))) <= D + 2
    harmonic_NV = -D / 2 * naive.metric_logits(h_ND, head.weight, -1.0).log()
    assert int(torch.linalg.matrix_rank(harmonic_NV.log_softmax(1))) == V


def test_far_from_every_centroid_the_distribution_saturates():
    """Far away P is not flat but certain: "far means unknown" holds for the raw distance, not for max P."""
    head = metric_head(6, 20)
    direction = torch.randn(1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    largest = [float(head(r * direction).softmax(1).max()) for r in (1.0, 10.0, 100.0, 1000.0)]
    assert largest == sorted(largest)
    assert largest[-1] > 0.999


@pytest.mark.parametrize(("init", "low", "high"), [("small_uniform", 0.0, 1 / 16 + 1e-6), ("unit", 0.0, 1.0)])
def test_centroid_initialisations(init, low, high):
    head = metric_head(16, 50, init=init).float()
    head.reset_weight()
    assert low < float(head.weight.abs().max()) <= high
    if init == "unit":
        torch.testing.assert_close(head.weight.norm(dim=1), torch.ones(50))


def test_batch_statistics_of_features_are_announced_as_a_leak():
    with pytest.warns(UserWarning, match="depends on later tokens"):
        metric_head(6, 20, feature_norm="batchnorm")


def test_bf16_distances_are_those_of_the_rounded_inputs():
    """Under autocast the product is bf16, but norms and the target's logit are float32 of the same rounded values."""
    D, V = 64, 50
    head = HEADS["metric"](D, V, HEADS["metric"].Options(scale=0.5))
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    h_ND = torch.randn(9, D, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits_NV = head(h_ND)
    assert logits_NV.dtype == torch.float32
    exact_NV = naive.metric_logits(h_ND.bfloat16().double(), head.weight.bfloat16().double(), 0.5)
    # A bf16 product of magnitude m is off by up to m/256; without rounding care the norms alone would be off by more.
    products_NV = (h_ND @ head.weight.T).abs()
    assert bool(((logits_NV - exact_NV).abs() <= products_NV / 200 + 1e-2).all())

"""What the heads are, mathematically."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import HEADS
from model.chunked import chunked_loss
from model.head_metric import SCALES

from . import naive
from .test_objectives import assert_same, data, gradients, make, naive_logits


def metric_head(D, V, **options):
    head = HEADS["metric"](D, V, HEADS["metric"].Options(**options)).double()
    head.reset_parameters()
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    return head


def bare(kind, D, V, **options):
    """A head in float64 with random embeddings and own parameters."""
    head = HEADS[kind](D, V, HEADS[kind].Options(**options)).double()
    head.reset_parameters()
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    return head


def hidden(N, D, seed=1):
    return torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


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


@pytest.mark.parametrize(
    ("kind", "most", "least"),
    [
        ("linear", 11, 11),
        ("metric", 12, 12),
        ("cosine", 11, 11),
        ("von_mises_fisher", 11, 11),
        ("harmonic", 60, 60),
        ("mixture", 60, 60),
    ],
)
def test_which_heads_break_the_softmax_bottleneck(kind, most, least):
    """Rank of the log-probability matrix over many contexts at D = 10 and V = 60: the metric head's is D + 2, not V."""
    head = bare(kind, 10, 60)
    assert least <= int(torch.linalg.matrix_rank(head(2 * hidden(200, 10)).log_softmax(1))) <= most


@settings(max_examples=10)
@given(share=st.floats(0.05, 0.95), seed=st.integers(0, 1000))
def test_of_three_collinear_words_the_middle_one_is_chosen_by_a_metric_head_or_a_linear_one_with_its_bias(share, seed):
    """h . w of the middle word lies between the others' for every h; distances from the middle word itself do not."""
    ends_2D = hidden(2, 5, seed)
    words_3D = torch.stack([ends_2D[0], torch.lerp(ends_2D[0], ends_2D[1], share), ends_2D[1]])
    h_ND = torch.cat([words_3D, 10 * hidden(50, 5, seed + 1)])
    choices = {}
    for name, kind, options in (
        ("linear", "linear", {}),
        ("metric", "metric", {}),
        ("biased", "linear", {"bias": True}),
    ):
        head = bare(kind, 5, 3, **options)
        with torch.no_grad():
            head.weight.copy_(words_3D)
            if name == "biased":
                head.bias.copy_(-words_3D.square().sum(1) / 2)
            choices[name] = head(h_ND).argmax(1)
    assert not bool((choices["linear"] == 1).any())
    assert choices["metric"][1] == choices["biased"][1] == 1
    assert choices["metric"].equal(choices["biased"])


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
    assert "later ones too" in metric_head(6, 20, feature_norm="batchnorm").mixes_positions
    assert not metric_head(6, 20, feature_norm="layernorm").mixes_positions


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


@pytest.mark.parametrize(("kind", "same"), [("cosine", True), ("von_mises_fisher", False)])
def test_lengths_of_class_vectors_do_not_count_and_those_of_hidden_states_are_the_concentration(kind, same):
    head, h_ND = bare(kind, 6, 20), hidden(9, 6)
    before, times = head(h_ND).detach(), 0.1 + torch.rand(20, 1, dtype=torch.float64)
    torch.testing.assert_close(head(3 * h_ND), before if same else 3 * before)
    with torch.no_grad():
        head.weight.mul_(times)
    torch.testing.assert_close(head(h_ND), before)


def test_the_share_of_a_von_mises_fisher_density_at_the_class_directions():
    """With its normaliser, which is the same at all of them: in three dimensions kappa / (4 pi sinh(kappa))."""
    head, h_ND = bare("von_mises_fisher", 3, 20), hidden(9, 3)
    kappa_N1 = h_ND.norm(dim=1, keepdim=True)
    cosines_NV = torch.nn.functional.cosine_similarity(h_ND[:, None], head.weight[None], dim=2)
    density_NV = kappa_N1 / (4 * math.pi * kappa_N1.sinh()) * (kappa_N1 * cosines_NV).exp()
    torch.testing.assert_close(head(h_ND).softmax(1), density_NV / density_NV.sum(1, keepdim=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@given(
    m=st.floats(0.01, 1.5),
    s=st.sampled_from([1.0, 16.0, 64.0]),
    D=st.integers(4, 12),  # in fewer dimensions some angle is below the least
    V=st.integers(2, 30),
    seed=st.integers(0, 999),
)
def test_a_margin_is_arcfaces_in_training_and_nowhere_else(smoothing, m, s, D, V, seed):
    head, objective = make(
        "cosine", "ce", D, V, {"scale": s, "margin": m}, {"label_smoothing": smoothing, "z_loss": 1e-3}
    )
    h_ND, y_N = data(V, D, 9, seed, head)
    found, without = (chunked_loss(head.train(mode), objective, h_ND, y_N, statistics=True) for mode in (True, False))
    z_NV = naive_logits(head, h_ND)
    for losses, seen_NV in ((found, naive.with_margin(z_NV, y_N, s, m)), (without, z_NV)):
        expected = naive.label_smoothed(seen_NV, y_N, smoothing) + 1e-3 * seen_NV.logsumexp(1).square()
        torch.testing.assert_close(losses.objective_N, expected.detach(), rtol=1e-9, atol=1e-9)
        leaves = (h_ND, head.weight)
        wanted = torch.autograd.grad(expected.sum(), leaves, retain_graph=True)
        assert_same(gradients(losses.objective_sum, *leaves), wanted, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(losses.nll_N, naive.cross_entropy(z_NV, y_N).detach(), rtol=1e-9, atol=1e-9)
    assert found.statistics.keys() == without.statistics.keys()
    for name, value in found.statistics.items():
        assert torch.equal(value, without.statistics[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-4, math.pi - 1e-4, math.pi])
def test_a_margin_is_finite_next_to_the_target_and_opposite_to_it(angle, dtype):
    head, objective = make("cosine", "ce", 16, 20, {"margin": 0.5}, dtype=torch.float32)
    h_ND, y_N = data(20, 16, 5, 0, head, dtype=torch.float32)
    with torch.no_grad():
        aside_ND = torch.linalg.qr(torch.stack([head.weight[y_N].T, h_ND.T], 2).permute(1, 0, 2))[0][:, :, 1]
        h_ND.copy_(4 * (math.cos(angle) * naive.directions(head.weight[y_N]) + math.sin(angle) * aside_ND))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        losses = chunked_loss(head, objective, h_ND, y_N)
    expected = 16 * (math.cos(angle + 0.5) if angle < 1 else math.cos(angle) - 0.5 * math.sin(0.5))
    z_NV = naive_logits(head, h_ND).detach().scatter(1, y_N[:, None], expected)
    wanted = naive.cross_entropy(z_NV, y_N)
    torch.testing.assert_close(
        losses.objective_N.double(), wanted, rtol=0.03 if dtype == torch.bfloat16 else 2e-3, atol=2e-2
    )
    for gradient in gradients(losses.objective_sum, h_ND, head.weight):
        assert gradient.isfinite().all()
        assert float(gradient.norm()) < 100


@pytest.mark.parametrize("kind", ["cosine", "von_mises_fisher"])
def test_an_embedding_of_zeros_has_a_logit_of_0_and_a_finite_gradient(kind):
    head, objective = make(kind, "ce", 6, 20)
    h_ND, y_N = data(20, 6, 9, 0, head)
    with torch.no_grad():
        head.weight[3] = 0
    assert bool((head(h_ND)[:, 3] == 0).all())
    assert gradients(chunked_loss(head, objective, h_ND, y_N).objective_sum, head.weight)[0].isfinite().all()


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("cosine", {"scale": 0.0}, "scale must be from 0.001 to 1000, not 0.0"),
        ("cosine", {"margin": -0.1}, "margin must be from 0 to pi/2, not -0.1"),
        ("cosine", {"margin": 0.1, "learn_scale": True}, "learn_scale must be false where there is a margin"),
        ("von_mises_fisher", {"multiplier": 0.0}, "multiplier must be from 1e-06 to 1e"),
        ("harmonic", {"exponent": 0.5}, "exponent must be from 1 to 10000, not 0.5"),
        ("mixture", {"components": 0}, "components must be from 1 to 64, not 0"),
    ],
)
def test_options_that_no_head_can_have(kind, options, said):
    with pytest.raises(ValueError, match=said):
        HEADS[kind].Options(**options)


@pytest.mark.parametrize("exponent", [1.0, "sqrt_width", "gpt2"])
def test_harmonic_probabilities_are_powers_of_distances_in_any_unit(exponent):
    head, h_ND = bare("harmonic", 6, 20, exponent=exponent), hidden(9, 6)
    distances_NV = (h_ND[:, None] - head.weight).norm(dim=2)
    powers_NV = distances_NV ** -{"sqrt_width": 6**0.5, "gpt2": 12.0}.get(exponent, exponent)
    torch.testing.assert_close(head(h_ND).softmax(1), powers_NV / powers_NV.sum(1, keepdim=True))
    before = head(h_ND).softmax(1).detach()
    with torch.no_grad():
        head.weight.mul_(1e-3)
    torch.testing.assert_close(head(1e-3 * h_ND).softmax(1), before)


def test_the_published_harmonic_variant_is_the_exponent_2_d():
    """Squared distances over D and over the row's least, to the power -D; neither division changes P or its gradient."""
    head, objective = make("harmonic", "ce", 16, 20, {"exponent": "gpt2"})
    h_ND, y_N = data(20, 16, 9, 0, head)
    squares_NV = (h_ND[:, None] - head.weight).square().sum(2) / 16
    powers_NV = (squares_NV / squares_NV.amin(1, keepdim=True)) ** -16
    expected = -(powers_NV / powers_NV.sum(1, keepdim=True)).log().gather(1, y_N[:, None]).sum()
    loss = chunked_loss(head, objective, h_ND, y_N).objective_sum
    torch.testing.assert_close(loss, expected)
    leaves = (h_ND, head.weight)
    assert_same(gradients(loss, *leaves), gradients(expected, *leaves), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("distance", [0.0, 1e-5, 1e-2, 0.1])
@pytest.mark.parametrize("exponent", [1.0, 8.0, "gpt2"])
def test_harmonic_distances_next_to_0_in_float32(exponent, distance):
    """The target's to float32's precision, down to 1e-3 of ||h||; the others', from one product, to 1e-6 of ||h||^2."""
    D, V = 64, 50
    head, objective = make("harmonic", "ce", D, V, {"exponent": exponent}, dtype=torch.float32)
    h_ND, y_N = data(V, D, 8, 0, head, dtype=torch.float32)
    with torch.no_grad():
        aside_ND = naive.directions(hidden(8, D)).float()
        h_ND.copy_(head.weight[y_N] + distance * head.weight[y_N].norm(dim=1, keepdim=True) * aside_ND)
    losses = chunked_loss(head, objective, h_ND, y_N)
    expected = naive.cross_entropy(naive_logits(head, h_ND).detach(), y_N)
    torch.testing.assert_close(losses.nll_N.double(), expected, rtol=1e-3, atol=1e-12)
    for gradient in gradients(losses.objective_sum, h_ND, head.weight):
        assert gradient.isfinite().all()


def test_a_hidden_state_of_zeros_under_the_harmonic_head():
    head, objective = make("harmonic", "ce", 6, 20, dtype=torch.float32)
    h_ND, y_N = data(20, 6, 9, 0, head, dtype=torch.float32)
    with torch.no_grad():
        h_ND.zero_()
    losses = chunked_loss(head, objective, h_ND, y_N)
    expected = (head.weight.norm(dim=1) ** -(6**0.5)).log().log_softmax(0)[y_N]
    torch.testing.assert_close(-losses.nll_N, expected.detach(), rtol=1e-4, atol=1e-4)
    assert all(g.isfinite().all() for g in gradients(losses.objective_sum, h_ND, head.weight))


def test_a_mixture_of_one_is_its_only_softmax_and_an_nll_has_no_ceiling():
    """1e-8 added to P, as in the published code, would end all of these at 18.4 nats."""
    head, h_ND = bare("mixture", 6, 20, components=1), hidden(9, 6)
    states_ND = (h_ND @ head.projection.T).tanh()
    torch.testing.assert_close(head(h_ND), (states_ND @ head.weight.T).log_softmax(1))
    head, objective = make("mixture", "ce", 6, 20, dtype=torch.float32)
    h_ND, y_N = data(20, 6, 9, 0, head, dtype=torch.float32)
    with torch.no_grad():
        head.weight.mul_(300)
    nll_N = chunked_loss(head, objective, h_ND, y_N).nll_N
    assert float(nll_N.max()) > 100
    torch.testing.assert_close(
        nll_N.double(), -torch.stack([z[y] for z, y in zip(_exact(head, h_ND), y_N, strict=True)]), rtol=1e-4, atol=1e-4
    )


def _exact(head, h_ND):
    """Log-probabilities of a mixture in float64 where naive probabilities would be 0."""
    states = (h_ND.double() @ head.projection.double().T).tanh().chunk(head.options.components, 1)
    prior_NK = (h_ND.double() @ head.prior.double().T).log_softmax(1)
    joint = [(s @ head.weight.double().T).log_softmax(1) + prior_NK[:, [i]] for i, s in enumerate(states)]
    return torch.stack(joint).logsumexp(0).detach()


def test_the_order_of_components_does_not_count():
    head, h_ND = bare("mixture", 6, 20, components=3), hidden(9, 6)
    torch.nn.init.normal_(head.prior)
    before = head(h_ND).detach()
    with torch.no_grad():
        for p in (head.projection, head.projection_bias, head.prior):
            p.copy_(p.unflatten(0, (3, -1)).flip(0).flatten(0, 1))
    torch.testing.assert_close(head(h_ND), before)


def test_centred_centroids_do_not_see_what_all_embeddings_share():
    head, h_ND = bare("metric", 6, 25, centroid_norm="centred"), hidden(9, 6)
    head.n_classes = 20
    before = head(h_ND)[:, :20].detach()
    with torch.no_grad():
        head.weight.add_(7.0)
        head.weight[20:] = 100.0  # padding is not in the mean
    torch.testing.assert_close(head(h_ND)[:, :20], before)


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_to_abstain_is_a_class_at_the_origin_that_is_never_a_target(padding):
    """The loss is over V + 1 classes, whatever pads the vocabulary; logits are the V tokens' and the mass is what is missing."""
    head, objective = make("metric", "ce", 6, 20 + padding, {"abstain": True, "scale": 0.1})
    plain, _ = make("metric", "ce", 6, 21, {"scale": 0.1})
    h_ND, y_N = data(20, 6, 40, 0, type("Real", (), {"weight": head.weight.data[:20]}))
    with torch.no_grad():
        head.weight[20:] = 100.0
        plain.weight.copy_(torch.cat([head.weight[:20], torch.zeros(1, 6)]))
    head.n_classes = 20
    found, expected = (chunked_loss(x, objective, h_ND, y_N, statistics=True) for x in (head, plain))
    torch.testing.assert_close(found.nll_N, expected.nll_N)
    (dw_VD,), (wanted_VD,) = (gradients(x.objective_sum, y.weight) for x, y in ((found, head), (expected, plain)))
    torch.testing.assert_close(dw_VD[:20], wanted_VD[:20])
    assert bool((dw_VD[20:] == 0).all())
    torch.testing.assert_close(head(h_ND)[:, :20], plain(h_ND)[:, :20])
    assert head(h_ND).shape == (40, 20 + padding)
    mass_N = found.statistics["metric/abstained"]
    torch.testing.assert_close(mass_N, plain(h_ND).softmax(1)[:, 20].detach())
    torch.testing.assert_close(head(h_ND, lambda head, f_ND: head.shift(f_ND)), plain(h_ND)[:, 20])
    assert 0.01 < float(mass_N.mean()) < 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("distance", [3e-2, 0.1, 0.3])
def test_harmonic_gradients_next_to_a_class_in_half_precision(distance, dtype):
    """Of the same rounded hidden states and classes: h - w_y is small there, and its direction is all of the gradient."""
    D, V = 64, 50
    head, objective = make("harmonic", "ce", D, V, {}, dtype=torch.float32)
    h_ND, y_N = data(V, D, 8, 0, head, dtype=torch.float32)
    with torch.no_grad():
        head.weight.copy_(head.weight.to(dtype))
        aside_ND = naive.directions(hidden(8, D)).float()
        h_ND.copy_((head.weight[y_N] + distance * head.weight[y_N].norm(dim=1, keepdim=True) * aside_ND).to(dtype))
    rounded_ND = h_ND.detach().to(dtype).requires_grad_()
    y_N = (y_N + 1) % V  # the near class is not the target: the gradient does not vanish
    actual = gradients(chunked_loss(head, objective, rounded_ND, y_N).objective_sum, rounded_ND, head.weight)
    exact, _ = make("harmonic", "ce", D, V, {})
    with torch.no_grad():
        exact.weight.copy_(head.weight)
    h_double = rounded_ND.detach().double().requires_grad_()
    expected = gradients(chunked_loss(exact, objective, h_double, y_N).objective_sum, h_double, exact.weight)
    for a, e in zip(actual, expected, strict=True):
        assert float((a.double() - e).norm() / e.norm()) < torch.finfo(dtype).eps

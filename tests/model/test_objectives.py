"""Objectives under both heads against naive float64 definitions: values, gradients, extremes."""

import math
from pathlib import Path

import mpmath
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from model import HEADS, OBJECTIVES, objectives
from model.chunked import MAX_ROWS, SAMPLING, _mixture_entropy, chunked_loss
from model.objective_tfsd import tfsd_value
from model.objectives import TokenLogits, negative_log_likelihood

from . import naive

HEADS_TRIED = {
    "linear": ("linear", {}),
    "metric": ("metric", {}),
    "centred": ("metric", {"centroid_norm": "centred", "scale": 0.3}),
    "abstaining": ("metric", {"abstain": True, "scale": 0.3}),
    "cosine": ("cosine", {"scale": 5.0}),
    "learned cosine": ("cosine", {"learn_scale": True}),
    "von Mises-Fisher": ("von_mises_fisher", {"multiplier": 2.0}),
    "harmonic": ("harmonic", {}),
    "harmonic, GPT-2": ("harmonic", {"exponent": "gpt2"}),
    "mixture": ("mixture", {"components": 3}),
}
"""Kind and options of the heads that every test of the loss is made with."""
SHAPES = {"V": st.integers(2, 40), "D": st.integers(1, 12), "N": st.integers(1, 9), "seed": st.integers(0, 10_000)}


def make(head_kind, objective_kind, D, V, head_options=None, objective_options=None, dtype=torch.float64):
    head = HEADS[head_kind](D, V, HEADS[head_kind].Options(**(head_options or {})))
    head.reset_parameters()
    objective = OBJECTIVES[objective_kind](OBJECTIVES[objective_kind].Options(**(objective_options or {})))
    return head.to(dtype), objective


def data(V, D, N, seed, head, spread=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    h_ND = (spread * torch.randn(N, D, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    with torch.no_grad():
        head.weight.copy_(spread * torch.randn(V, D, generator=generator, dtype=torch.float64))
        if hasattr(head, "prior"):  # which would start with equal probabilities
            head.prior.copy_(torch.randn(head.prior.shape, generator=generator))
            head.projection.copy_(torch.randn(head.projection.shape, generator=generator) / (3 * D) ** 0.5)
    return h_ND, torch.randint(0, V, (N,), generator=generator)


def naive_logits(head, h_ND):
    return naive.logits(head, h_ND.double(), head.weight.double())


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


def assert_same(actual, expected, rtol, atol):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), e.double(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", HEADS_TRIED)
@given(**SHAPES, spread=st.sampled_from([0.01, 0.3, 1.0, 3.0]), g=st.sampled_from([0.01, 0.125, 0.5, 2.0]))
def test_tfsd_is_the_kl_divergence(name, V, D, N, seed, spread, g):
    head_kind, options = HEADS_TRIED[name]
    head, objective = make(head_kind, "tfsd", D, V, options | ({"scale": g} if head_kind == "metric" else {}))
    h_ND, y_N = data(V, D, N, seed, head, spread)
    losses = chunked_loss(head, objective, h_ND, y_N)
    expected = naive.tfsd(naive_logits(head, h_ND), y_N).sum()
    torch.testing.assert_close(losses.objective_sum, expected, rtol=1e-9, atol=1e-11)
    assert_same(
        gradients(losses.objective_sum, h_ND, head.weight),
        gradients(expected, h_ND, head.weight),
        rtol=1e-7,
        atol=1e-11,
    )


@given(**SHAPES, spread=st.sampled_from([0.01, 0.3, 1.0, 3.0]), g=st.sampled_from([0.01, 0.125, 0.5, 2.0]))
def test_the_tfsd_gradient_is_c_times_that_of_cross_entropy(V, D, N, seed, spread, g):
    """mathematics.md, section 2: for every logit, dTFSD/dz = c dCE/dz with c = (1 - exp(z_y)) / (1 + S)."""
    generator = torch.Generator().manual_seed(seed)
    h_ND, w_VD = (spread * torch.randn(n, D, generator=generator, dtype=torch.float64) for n in (N, V))
    y_N = torch.randint(0, V, (N,), generator=generator)
    z_NV = naive.metric_logits(h_ND, w_VD, g).requires_grad_()
    (d_tfsd,) = gradients(naive.tfsd(z_NV, y_N).sum(), z_NV)
    (d_ce,) = gradients(naive.cross_entropy(z_NV, y_N).sum(), z_NV)
    c_N = naive.tfsd_weight(z_NV.detach(), y_N)
    assert bool(((c_N >= 0) & (c_N <= 1)).all())  # below 1, but for rounding
    torch.testing.assert_close(d_tfsd, c_N[:, None] * d_ce, rtol=0, atol=1e-14)


@given(**SHAPES)
def test_weighted_ce_trains_exactly_as_tfsd(V, D, N, seed):
    found = []
    for kind in ("tfsd", "weighted_ce"):
        head, objective = make("metric", kind, D, V, dtype=torch.float32)
        h_ND, y_N = data(V, D, N, seed, head, dtype=torch.float32)
        found.append(gradients(chunked_loss(head, objective, h_ND, y_N).objective_sum, h_ND, head.weight))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", HEADS_TRIED)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@given(**SHAPES)
def test_cross_entropy_with_its_options(name, smoothing, V, D, N, seed):
    """Value and gradients of hidden states, weight and the head's own parameters."""
    head, objective = make(
        HEADS_TRIED[name][0], "ce", D, V, HEADS_TRIED[name][1], {"label_smoothing": smoothing, "z_loss": 1e-2}
    )
    h_ND, y_N = data(V, D, N, seed, head)
    losses = chunked_loss(head, objective, h_ND, y_N)
    z_NV = naive_logits(head, h_ND)
    expected = (naive.label_smoothed(z_NV, y_N, smoothing) + 1e-2 * z_NV.logsumexp(1).square()).sum()
    torch.testing.assert_close(losses.objective_sum, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(losses.nll_sum, naive.cross_entropy(z_NV, y_N).sum(), rtol=1e-9, atol=1e-10)
    leaves = (h_ND, *head.parameters())
    assert_same(gradients(losses.objective_sum, *leaves), gradients(expected, *leaves), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(
    ("head_kind", "options"),
    [
        ("linear", {"bias": True}),
        ("metric", {"scale": "learned"}),
        ("metric", {"scale": "article", "feature_norm": "layernorm", "centroid_norm": "layernorm"}),
        ("metric", {"centroid_norm": "batchnorm"}),
        ("metric", {"centroid_norm": "centred", "abstain": True, "scale": "learned"}),
        ("cosine", {"learn_scale": True}),
        ("cosine", {"scale": 4.0, "margin": 0.4}),
        ("von_mises_fisher", {}),
        ("harmonic", {"exponent": 3.0}),
        ("mixture", {"components": 2}),
    ],
)
def test_gradcheck_of_every_parameter(head_kind, options):
    """Finite differences against cross-entropy with both extras, for all parameters of the head."""
    head, objective = make(head_kind, "ce", 4, 7, options, {"label_smoothing": 0.1, "z_loss": 0.01})
    h_ND, y_N = data(7, 4, 5, 0, head)
    y_N[2] = -100
    names = list(dict(head.named_parameters()))

    def loss(h_ND, *parameters):
        return torch.func.functional_call(
            _Loss(head, objective, y_N), {f"head.{n}": p for n, p in zip(names, parameters, strict=True)}, (h_ND,)
        )

    assert torch.autograd.gradcheck(loss, (h_ND, *head.parameters()))


class _Loss(torch.nn.Module):
    def __init__(self, head, objective, y_N):
        super().__init__()
        self.head, self.objective, self.y_N = head, objective, y_N

    def forward(self, h_ND):
        return chunked_loss(self.head, self.objective, h_ND, self.y_N).objective_sum


def test_tfsd_gradients_of_every_parameter():
    """TFSD's teacher is detached, so its gradient is that of c x CE with c held fixed, the learned scale included."""
    head, objective = make("metric", "tfsd", 4, 7, {"scale": "learned"})
    h_ND, y_N = data(7, 4, 5, 0, head)
    c_N = naive.tfsd_weight(naive_logits(head, h_ND).detach(), y_N).detach()
    actual = gradients(chunked_loss(head, objective, h_ND, y_N).objective_sum, h_ND, head.weight, head.log_scale)
    z_NV = naive.metric_logits(h_ND, head.weight, head.scale())
    expected = gradients((c_N * naive.cross_entropy(z_NV, y_N)).sum(), h_ND, head.weight, head.log_scale)
    assert_same(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("objective_kind", ["ce", "tfsd", "weighted_ce"])
@pytest.mark.parametrize("name", HEADS_TRIED)
def test_chunks_and_ignored_tokens_change_nothing(name, objective_kind):
    head, objective = make(HEADS_TRIED[name][0], objective_kind, 6, 30, HEADS_TRIED[name][1])
    h_ND, y_N = data(30, 6, 50, 1, head)
    y_N[::7] = -100
    keep = y_N != -100
    whole = chunked_loss(head, objective, h_ND, y_N, statistics=True)
    chunked = chunked_loss(head, objective, h_ND, y_N, statistics=True, rows=7)
    only_valid = chunked_loss(head, objective, h_ND[keep], y_N[keep])
    assert_same(
        gradients(chunked.objective_sum, h_ND, head.weight),
        gradients(whole.objective_sum, h_ND, head.weight),
        1e-12,
        1e-14,
    )
    torch.testing.assert_close(chunked.objective_sum, only_valid.objective_sum)
    torch.testing.assert_close(chunked.nll_sum, only_valid.nll_sum)
    assert chunked.valid_N.sum() == keep.sum()
    for metric, value in (whole.statistics | whole.sampled).items():
        torch.testing.assert_close((chunked.statistics | chunked.sampled)[metric], value, msg=metric)
    dh_ND = gradients(chunked_loss(head, objective, h_ND, y_N).objective_sum, h_ND)[0]
    assert bool((dh_ND[~keep] == 0).all())


@pytest.mark.parametrize("name", HEADS_TRIED)
def test_statistics_against_full_logits(name):
    head_kind, options = HEADS_TRIED[name]
    head, objective = make(head_kind, "weighted_ce", 6, 30, options | ({"scale": 0.2} if head_kind == "metric" else {}))
    h_ND, y_N = data(30, 6, 11, 3, head)
    losses = chunked_loss(head, objective, h_ND, y_N, statistics=True)
    found = losses.statistics | losses.sampled
    assert losses.sampled.keys() == {"logit/std", "entropy/p", "tfsd/target_entropy"}
    z_NV = naive_logits(head, h_ND).detach()
    q_NV = z_NV.clone()
    q_NV[torch.arange(11), y_N] = 0
    expected = {
        "logit/max": z_NV.amax(1),
        "logit/mean": z_NV.mean(1),
        "logit/std": z_NV.std(1, correction=0),
        "logit/logsumexp": z_NV.logsumexp(1),
        "entropy/p": torch.distributions.Categorical(logits=z_NV).entropy(),
        "tfsd/weight": naive.tfsd_weight(z_NV, y_N),
        "tfsd/target_entropy": torch.distributions.Categorical(logits=q_NV).entropy(),
    }
    if head_kind == "metric":
        w_VD = head.weight - (head.weight.mean(0) if options.get("centroid_norm") else 0)
        expected["metric/true_distance"] = (h_ND - w_VD[y_N]).norm(dim=1).detach()
    if options.get("abstain"):
        expected["metric/abstained"] = z_NV.softmax(1)[:, -1]
    if head_kind == "cosine":
        expected["cosine/true"] = F.cosine_similarity(h_ND, head.weight[y_N]).detach()
        expected["cosine/scale"] = torch.full((11,), float(torch.as_tensor(head.scale()).detach()), dtype=torch.float64)
    assert found.keys() == expected.keys()
    for metric, value in expected.items():
        expected_here = value[::SAMPLING] if metric in losses.sampled else value
        torch.testing.assert_close(found[metric], expected_here, rtol=1e-8, atol=1e-8, msg=metric)


def test_the_spread_of_the_logits_survives_their_drift():
    """Logits around 320 with a standard deviation of 0.15, in float32: a drift that a testbed for stability must see through."""
    head, objective = make("linear", "ce", 8, 500, dtype=torch.float32)
    h_ND, y_N = data(500, 8, 20, 0, head, spread=0.05, dtype=torch.float32)
    with torch.no_grad():
        head.weight[:, 0], h_ND[:, 0] = 320.0, 1.0
        head.weight[:, 1:] *= 10
    found = chunked_loss(head, objective, h_ND, y_N, statistics=True).sampled["logit/std"]
    exact = (h_ND.double() @ head.weight.double().T).std(1, correction=0)[::SAMPLING]
    torch.testing.assert_close(found.double(), exact, rtol=5e-3, atol=0)  # a float32 near 320 is 3e-5 from the next


EXTREMES = [
    ("the hidden state is the true centroid", 0.0, 3.0),
    ("almost", 1e-4, 3.0),
    ("true centroid far, negatives near", 40.0, 0.1),
    ("all far", 60.0, 60.0),
    ("all near", 1e-3, 1e-3),
]


@pytest.mark.parametrize(("what", "true_distance", "negative_distance"), EXTREMES)
def test_tfsd_in_float32_at_the_extremes(what, true_distance, negative_distance):
    """Finite, not negative, and close to float64 where the definition itself is stable, value and gradient."""
    V, D, N = 50, 16, 8
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(V, D, generator=generator, dtype=torch.float64), dim=1)
    h_ND = torch.randn(1, D, generator=generator, dtype=torch.float64).repeat(N, 1)
    w_VD = h_ND[:1] + negative_distance * directions
    w_VD[0] = h_ND[0] + true_distance * directions[0]
    y_N = torch.zeros(N, dtype=torch.long)
    h_ND, w_VD = h_ND.float().double(), w_VD.float().double()  # both precisions start from the same numbers
    results = {}
    for dtype in (torch.float32, torch.float64):
        head, objective = make("metric", "tfsd", D, V, {"scale": 0.5}, dtype=dtype)
        with torch.no_grad():
            head.weight.copy_(w_VD)
        h = h_ND.to(dtype).requires_grad_()
        loss = chunked_loss(head, objective, h, y_N).objective_sum
        results[dtype] = (loss.detach(), *gradients(loss, h, head.weight))
    assert all(bool(t.isfinite().all()) for t in results[torch.float32]), what
    assert results[torch.float32][0] >= 0, what
    (value, *gradient), (exact, *exact_gradient) = results[torch.float32], results[torch.float64]
    # The negatives come from one float32 product, so logits of magnitude m carry an error of some m * 2^-23: that is
    # 1e-3 nats where every centroid is 60 away (m = 1800), and visible where all differences between logits are 1e-6.
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-7)
    for a, b in zip(gradient, exact_gradient, strict=True):
        assert float((a.double() - b).abs().max()) <= 2e-3 * float(b.abs().max())


def test_tfsd_value_keeps_its_precision():
    """Relative error of the float32 value for |z_y| from 1e-8 to 1e4 and L from -60 to 300: at most 1e-7, against 80 digits."""
    sizes = torch.logspace(-8, 4, 40)
    logs = torch.tensor([-60.0, -20.0, -7.0, -1.0, -1e-4, 0.0, 0.3, 5.0, 30.0, 60.0, 300.0])
    grid = torch.meshgrid(torch.cat([sizes, -sizes]), logs, indexing="ij")
    true_N, negatives_N = (x.flatten() for x in grid)
    exact_N = []
    with mpmath.workdps(80):
        for z, log_s in zip(true_N.tolist(), negatives_N.tolist(), strict=True):
            s = mpmath.exp(log_s)
            exact_N.append(float(mpmath.log((mpmath.exp(z) + s) / (1 + s)) - mpmath.mpf(z) / (1 + s)))
    exact = torch.tensor(exact_N, dtype=torch.float64)
    single = tfsd_value(TokenLogits(true_N, negatives_N, *[true_N] * 3)).double()
    smallest = torch.finfo(torch.float32).tiny
    assert float(((single - exact).abs() / exact.clamp(min=smallest)).max()) <= 1e-7


@given(log_odds=st.floats(-80, 80, width=32), entropy=st.floats(0, 12, width=32))
def test_entropy_of_a_mixture_keeps_its_precision(log_odds, entropy):
    """Of the target with the probability p of these odds, else one of the negatives: H(p) + (1 - p) H(negatives)."""
    with mpmath.workdps(80):
        p = 1 / (1 + mpmath.exp(-mpmath.mpf(log_odds)))
        exact = float(-p * mpmath.log(p) - (1 - p) * mpmath.log(1 - p) + (1 - p) * entropy)
    found = float(_mixture_entropy(torch.tensor(log_odds), torch.tensor(entropy)))
    assert found == pytest.approx(exact, rel=2e-6, abs=1e-37)


@pytest.mark.parametrize(("kind", "drift"), [("linear", 0.0), ("linear", 300.0), ("metric", 0.0)])
@given(seed=st.integers(0, 1000), spread=st.sampled_from([0.02, 0.5, 2.0]))
def test_sampled_statistics_in_float32(kind, drift, seed, spread):
    """From next to uniform to next to sure, near 0 and far from it: entropies and spread as in float64, relative to themselves.

    The log of a probability of 1e-50 is a float32 between 64 and 128, in steps of 8e-6: so much is a small probability off.
    """
    V, D, N = 60, 8, 33
    generator = torch.Generator().manual_seed(seed)
    h_ND, w_VD = (spread * torch.randn(n, D, generator=generator) for n in (N, V))
    h_ND, w_VD = h_ND * 4, w_VD * 2
    w_VD[:, 0], h_ND[:, 0] = drift, 1.0
    h_ND, w_VD = (x.mul(64).round().div(64) for x in (h_ND, w_VD))  # products without rounding, also near 300
    y_N = torch.randint(0, V, (N,), generator=generator)
    found = []
    for dtype in (torch.float32, torch.float64):
        head, objective = make(kind, "weighted_ce", D, V, dtype=dtype)
        with torch.no_grad():
            head.weight.copy_(w_VD)
        found.append(chunked_loss(head, objective, h_ND.to(dtype), y_N, statistics=True).sampled)
    for name, exact in found[1].items():
        torch.testing.assert_close(found[0][name].double(), exact, rtol=3e-5, atol=1e-36)


def test_the_spread_of_equal_logits_is_0_and_never_nan():
    """Rows of the embedding that are all alike: what is left of the variance is rounding, of either sign."""
    head, objective = make("linear", "ce", 16, 5000, dtype=torch.float32)
    spreads = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            head.weight.copy_(torch.randn(1, 16, generator=generator).expand(5000, 16))
        h_ND = torch.randn(SAMPLING, 16, generator=generator)
        y_N = torch.zeros(SAMPLING, dtype=torch.long)
        spreads.append(chunked_loss(head, objective, h_ND, y_N, statistics=True).sampled["logit/std"])
    assert torch.cat(spreads).isfinite().all()
    assert torch.cat(spreads).max() < 1e-2


def test_total_collapse_has_no_tfsd_loss_and_nll_of_the_uniform_distribution():
    """Every centroid equal to the hidden state: TFSD is 0 although nothing is predicted. TFSD is no measure of progress."""
    V = 100
    head, objective = make("metric", "tfsd", 8, V)
    h_ND, y_N = data(V, 8, 6, 0, head)
    h_ND = h_ND[:1].detach().repeat(6, 1)
    with torch.no_grad():
        head.weight.copy_(h_ND[:1].expand(V, -1))
    losses = chunked_loss(head, objective, h_ND, y_N)
    assert float(losses.objective_sum) == pytest.approx(0.0, abs=1e-12)
    assert float(losses.nll_sum) / 6 == pytest.approx(math.log(V), rel=1e-12)


def test_no_tensor_of_tokens_by_vocabulary_exists_in_training():
    """The largest tensor that any operation of forward or backward makes has at most a chunk of rows."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            result = function(*arguments, **(keywords or {}))
            for t in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(t, torch.Tensor):
                    self.elements = max(self.elements, t.numel())
            return result

    N, V, D = 8 * MAX_ROWS["cpu"], 1000, 8
    head, objective = make("metric", "tfsd", D, V, dtype=torch.float32)
    h_ND, y_N = data(V, D, N, 0, head, dtype=torch.float32)
    with Largest() as largest:
        chunked_loss(head, objective, h_ND, y_N, statistics=True).objective_sum.backward()
    assert largest.elements <= MAX_ROWS["cpu"] * V


@pytest.mark.parametrize("surprise", [19.0, 20.5, 30.0, 39.0, 45.0])
def test_nll_and_its_gradient_are_exact_in_float64_for_surprising_tokens(surprise):
    """torch's own softplus is the identity beyond 20: off by 2e-9 there, where the rest of float64 is good to 1e-16."""
    true = torch.tensor([-surprise], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    nll = negative_log_likelihood(TokenLogits(true, zero, zero, zero, zero))
    (slope,) = gradients(nll.sum(), true)
    with mpmath.workdps(40):
        expected = mpmath.log1p(mpmath.exp(surprise))
        expected_slope = -1 / (1 + mpmath.exp(-mpmath.mpf(surprise)))
    assert float(nll) == pytest.approx(float(expected), rel=1e-15)
    assert float(slope) == pytest.approx(float(expected_slope), rel=1e-15)


def test_no_objective_uses_the_softplus_that_is_cut_off():
    """The one of objectives.py is exact in float64; a sum of exponentials of -|x| alone may use torch's."""
    here = Path(objectives.__file__).parent
    users = [path.name for path in sorted(here.glob("objective_*.py")) if "F.softplus" in path.read_text()]
    assert users == []

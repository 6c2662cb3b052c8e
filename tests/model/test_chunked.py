"""The chunked loss as a primitive: options of heads, precision, memory, and the ways autograd may use it."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from model.chunked import MAX_ROWS, chunk_rows, chunked_loss

from . import naive
from .test_objectives import HEADS_TRIED, assert_same, data, gradients, make, naive_logits

SHAPES = {"V": st.integers(2, 40), "D": st.integers(1, 12), "N": st.integers(1, 30), "seed": st.integers(0, 10_000)}


@given(
    **SHAPES,
    rows=st.integers(1, 31),
    cap=st.sampled_from([0.5, 5.0, 50.0]),
    bias=st.booleans(),
    times=st.sampled_from([1.0, 0.5, 4.0]),
)
def test_options_of_the_linear_head(V, D, N, seed, rows, cap, bias, times):
    """Logits c tanh(z / c) of z = m h . w + b: value and gradients, with label smoothing and z-loss on the capped logits."""
    options = {"label_smoothing": 0.1, "z_loss": 1e-2}
    head, objective = make("linear", "ce", D, V, {"soft_cap": cap, "bias": bias, "multiplier": times}, options)
    h_ND, y_N = data(V, D, N, seed, head)
    if bias:
        torch.nn.init.normal_(head.bias, generator=torch.Generator().manual_seed(seed))
    loss = chunked_loss(head, objective, h_ND, y_N, rows=rows).objective_sum

    def capped():
        return cap * ((times * h_ND @ head.weight.T + (head.bias if bias else 0)) / cap).tanh()

    z_NV = capped()
    torch.testing.assert_close(head(h_ND), z_NV)
    assert_same(gradients(head(h_ND).sin().sum(), h_ND), gradients(capped().sin().sum(), h_ND), rtol=1e-9, atol=1e-12)
    expected = (naive.label_smoothed(z_NV, y_N, 0.1) + 1e-2 * z_NV.logsumexp(1).square()).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-10)
    leaves = (h_ND, *head.parameters())
    assert_same(gradients(loss, *leaves), gradients(expected, *leaves), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", HEADS_TRIED)
@given(**SHAPES, rows=st.integers(1, 31), padding=st.integers(1, 9))
def test_padded_rows_are_no_classes(name, V, D, N, seed, rows, padding):
    """Loss, statistics and gradients are those of the head without padding; the padding's own gradient is 0."""
    found = []
    for extra in (0, padding):
        head, objective = make(HEADS_TRIED[name][0], "ce", D, V + extra, HEADS_TRIED[name][1], {"label_smoothing": 0.1})
        head.n_classes = V
        torch.manual_seed(seed)
        head.reset_parameters()
        h_ND, y_N = data(V, D, N, seed, _Rows(head, V))
        if extra:
            with torch.no_grad():
                head.weight[V:] = 100.0
        losses = chunked_loss(head, objective, h_ND, y_N, statistics=True, rows=rows)
        dh_ND, dw_VD = gradients(losses.objective_sum, h_ND, head.weight)
        assert bool((dw_VD[V:] == 0).all())
        assert bool((head(h_ND)[:, V:] == -torch.inf).all())
        found.append((losses.objective_sum, dh_ND, dw_VD[:V], head(h_ND)[:, :V], *losses.statistics.values()))
    assert_same(*found, rtol=1e-12, atol=1e-12)


class _Rows:
    """The first rows of a head's weight under the name that data() fills."""

    def __init__(self, head, V):
        self.weight = head.weight.data[:V]


@given(**SHAPES, rows=st.integers(1, 31), statistics=st.booleans(), kind=st.sampled_from(["ce", "tfsd"]))
def test_any_size_of_chunks(V, D, N, seed, rows, statistics, kind):
    head, objective = make("metric", kind, D, V)
    h_ND, y_N = data(V, D, N, seed, head)
    y_N[::5] = -100
    found = []
    for size in (rows, N):
        losses = chunked_loss(head, objective, h_ND, y_N, statistics, size)
        found.append((losses.objective_sum, losses.nll_sum, *gradients(losses.objective_sum, h_ND, head.weight)))
    assert_same(*found, rtol=1e-10, atol=1e-12)


@given(st.integers(0, 100_000), st.integers(2, 300_000), st.sampled_from(["cpu", "cuda"]))
def test_chunks_are_of_equal_size_and_a_fifth_of_all_at_most(tokens, vocabulary, device):
    rows = chunk_rows(tokens, vocabulary, device)
    assert 4 * rows * vocabulary <= 1 << 30
    assert 1 <= rows <= MAX_ROWS[device]
    chunks = -(-tokens // rows)
    assert chunks * rows - tokens < max(1, chunks)
    assert rows <= max(128, -(-tokens // 5))


def test_a_target_with_a_gradient_where_the_negatives_have_none():
    """log Z = -1/(2a) is where the z-loss turns the negatives' gradient to exactly 0; the target keeps its own."""
    head, objective = make("linear", "ce", 2, 3, {}, {"z_loss": 0.5})
    h_ND = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    with torch.no_grad():
        head.weight[:, 1] = 0
        head.weight[:, 0] = -1 - torch.tensor(3.0, dtype=torch.float64).log()
    h_ND.requires_grad_()
    y_N = torch.tensor([1])
    z_NV = h_ND @ head.weight.T
    expected = (F.cross_entropy(z_NV, y_N) + 0.5 * z_NV.logsumexp(1).square()).sum()
    loss = chunked_loss(head, objective, h_ND, y_N).objective_sum
    assert_same(gradients(loss, h_ND, head.weight), gradients(expected, h_ND, head.weight), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["ce", "tfsd"])
@pytest.mark.parametrize("g", [0.5, 0.01])
def test_half_precision_products_and_float32_sums(dtype, kind, g):
    """Under autocast: within the rounding of the inputs of the float64 definition on those same rounded inputs.

    At g = 0.01 and 600 tokens c is about 1e-3 and P about 1/V: what would round to 0 in float16 must not.
    """
    V, D, N = 300, 16, 600
    head, objective = make("metric", kind, D, V, {"scale": g}, dtype=torch.float32)
    h_ND, y_N = data(V, D, N, 0, head, dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        losses = chunked_loss(head, objective, h_ND, y_N, rows=64)
    actual = gradients(losses.objective_sum, h_ND, head.weight)
    assert all(gradient.dtype == torch.float32 for gradient in actual)
    h64, w64 = ((x.to(dtype).double()).detach().requires_grad_() for x in (2 * g * h_ND, head.weight))
    z_NV = naive.metric_logits(h64 / (2 * g), w64, g)
    expected = (naive.tfsd(z_NV, y_N) if kind == "tfsd" else naive.cross_entropy(z_NV, y_N)).sum()
    torch.testing.assert_close(losses.objective_sum.double(), expected, rtol=2e-3, atol=0)
    dh, dw = gradients(expected, h64, w64)
    for a, e in zip(actual, (2 * g * dh, dw), strict=True):
        assert float((a.double() - e).norm() / e.norm()) < 2 * torch.finfo(dtype).eps


def test_weight_gradients_do_not_lose_small_chunks():
    """4,096 equal tokens in chunks of 16 under bfloat16: a bfloat16 sum over chunks would stop growing at 1/256 of itself."""
    head, objective = make("linear", "ce", 8, 20, dtype=torch.float32)
    h_ND, y_N = data(20, 8, 1, 0, head, dtype=torch.float32)
    many_ND, many_N = h_ND.detach().repeat(4096, 1), y_N.repeat(4096)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        one = gradients(chunked_loss(head, objective, many_ND[:16], many_N[:16]).objective_sum, head.weight)[0]
        all_ = gradients(chunked_loss(head, objective, many_ND, many_N, rows=16).objective_sum, head.weight)[0]
    torch.testing.assert_close(all_, 256 * one, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", HEADS_TRIED)
def test_a_weight_used_as_embedding_too_gets_both_gradients(name):
    head, objective = make(HEADS_TRIED[name][0], "ce", 6, 20, HEADS_TRIED[name][1])
    data(20, 6, 1, 0, head)
    x_N, y_N = torch.arange(10), torch.arange(1, 11)
    mixing_DD = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def hidden():
        return F.embedding(x_N, head.weight) @ mixing_DD

    loss = chunked_loss(head, objective, hidden(), y_N, rows=3).objective_sum
    expected = naive.cross_entropy(naive_logits(head, hidden()), y_N).sum()
    assert_same(gradients(loss, head.weight), gradients(expected, head.weight), rtol=1e-9, atol=1e-12)


def test_gradients_may_be_asked_for_twice_and_are_scaled_once():
    head, objective = make("metric", "tfsd", 6, 20)
    h_ND, y_N = data(20, 6, 10, 0, head)
    loss = 3 * chunked_loss(head, objective, h_ND, y_N).objective_sum
    first = [g.clone() for g in torch.autograd.grad(loss, (h_ND, head.weight), retain_graph=True)]
    second = torch.autograd.grad(loss, (h_ND, head.weight))
    assert_same(second, first, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="retain_graph"):
        torch.autograd.grad(loss, h_ND)


def test_gradients_add_up_over_backward_passes():
    head, objective = make("metric", "ce", 6, 20)
    h_ND, y_N = data(20, 6, 10, 0, head)
    for _ in range(2):
        chunked_loss(head, objective, h_ND, y_N).objective_sum.backward()
    once = gradients(chunked_loss(head, objective, h_ND, y_N).objective_sum, h_ND, head.weight)
    assert_same((h_ND.grad, head.weight.grad), [2 * g for g in once], rtol=1e-12, atol=0)


def test_inside_a_compiled_function():
    head, objective = make("metric", "tfsd", 6, 20, dtype=torch.float32)
    h_ND, y_N = data(20, 6, 10, 0, head, dtype=torch.float32)

    def loss(h_ND):
        return 2 * chunked_loss(head, objective, 3 * h_ND, y_N).objective_sum

    compiled = gradients(torch.compile(loss, backend="eager")(h_ND), h_ND, head.weight)
    assert_same(compiled, gradients(loss(h_ND), h_ND, head.weight), rtol=0, atol=0)


class _LiveBytes(TorchDispatchMode):
    """The most bytes held at once by what operations have made (their inputs apart), and the largest tensor among it."""

    def __init__(self, *inputs):
        super().__init__()
        self.inputs = {t.untyped_storage()._cdata for t in inputs}
        self.storages, self.peak, self.largest = {}, 0, 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        self.storages = {k: v for k, v in self.storages.items() if not v[0].expired()}
        for t in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(t, torch.Tensor) and (storage := t.untyped_storage())._cdata not in self.inputs:
                self.largest = max(self.largest, t.numel())
                self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.storages.values()))
        return result


def test_no_tokens_at_all():
    head, objective = make("metric", "tfsd", 6, 20)
    torch.nn.init.ones_(head.weight)  # a new head's weight is whatever stood in memory, NaN now and then
    losses = chunked_loss(head, objective, torch.empty(0, 6, dtype=torch.float64), torch.empty(0, dtype=torch.long))
    assert float(losses.objective_sum) == 0
    assert bool((gradients(losses.objective_sum, head.weight)[0] == 0).all())


@pytest.mark.parametrize("name", HEADS_TRIED)
@pytest.mark.parametrize("label", [-1, -99, 20, 24])
def test_a_target_that_is_no_class_is_refused(name, label):
    """As torch's own cross-entropy does; -100 alone is ignored, and rows 20 to 24 are padding of the vocabulary."""
    head, objective = make(HEADS_TRIED[name][0], "ce", 6, 25, HEADS_TRIED[name][1])
    head.n_classes = 20
    h_ND, y_N = data(25, 6, 9, 0, head)
    y_N = y_N.clamp(max=19)
    y_N[3] = label
    with pytest.raises((RuntimeError, IndexError), match=r"out of (bounds|range)"):
        chunked_loss(head, objective, h_ND, y_N)


def test_float16_gradients_wait_for_the_loss_scale():
    """Gradients of hidden states of some 1e-7, which a loss scale of 2^16 lifts: exact to float16's rounding."""
    V, D, N = 5000, 16, 40
    head, objective = make("linear", "ce", D, V, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        head.weight.copy_(1e-5 * torch.randn(V, D, generator=generator))
    h_ND = torch.randn(N, D, generator=generator).requires_grad_()
    y_N = torch.randint(0, V, (N,), generator=generator)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = 2.0**16 * chunked_loss(head, objective, h_ND, y_N).objective_sum
    w_VD = head.weight.half().double()
    h64_ND = h_ND.detach().half().double().requires_grad_()
    expected = gradients(2.0**16 * naive.cross_entropy(h64_ND @ w_VD.T, y_N).sum(), h64_ND)[0]
    assert float((gradients(loss, h_ND)[0].double() - expected).norm() / expected.norm()) < 1e-2


@pytest.mark.parametrize(
    ("head_kind", "options"),
    [
        ("linear", {"bias": True}),
        ("linear", {"soft_cap": 3.0}),
        ("metric", {}),
        ("cosine", {"margin": 0.3}),
        ("harmonic", {}),
        ("mixture", {}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_loss_on_the_triton_kernel(head_kind, options, dtype):
    """What runs on CUDA, with the kernel in its interpreter, against the eager blocks; padding, statistics and -100 included."""
    head, objective = make(
        head_kind, "ce", 8, 60, options, {"label_smoothing": 0.1, "z_loss": 1e-3}, dtype=torch.float32
    )
    h_ND, y_N = data(60, 8, 50, 0, head, dtype=torch.float32)
    if options.get("bias"):
        torch.nn.init.normal_(head.bias, generator=torch.Generator().manual_seed(1))
    head.n_classes, y_N = 50, y_N % 50
    y_N[::7] = -100
    found = []
    for head.kernel in ("torch", "triton"):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            losses = chunked_loss(head, objective, h_ND, y_N, statistics=True, rows=16)
        leaves = (h_ND, *head.parameters())
        found.append((losses.objective_sum, *gradients(losses.objective_sum, *leaves), *losses.statistics.values()))
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    assert_same(*found, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", HEADS_TRIED)
def test_every_head_in_every_precision(name, dtype):
    """All gradients within 8 units in the last place, as norms, of the float64 definition on inputs that are not rounded."""
    torch.manual_seed(0)
    head, objective = make(
        HEADS_TRIED[name][0], "ce", 16, 300, HEADS_TRIED[name][1], {"label_smoothing": 0.1}, torch.float32
    )
    h_ND, y_N = data(300, 16, 600, 0, head, dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        loss = chunked_loss(head, objective, h_ND, y_N, rows=64).objective_sum
    leaves, unit = (h_ND, *head.parameters()), torch.finfo(dtype).eps
    expected = naive.label_smoothed(naive_logits(head, h_ND), y_N, 0.1).sum()
    torch.testing.assert_close(loss.double(), expected, rtol=unit, atol=0)
    for found, wanted in zip(gradients(loss, *leaves), gradients(expected, *leaves), strict=True):
        assert found.dtype == torch.float32
        assert float((found - wanted).norm() / wanted.norm()) < 8 * unit


@pytest.mark.parametrize(
    ("head_kind", "kind", "share"),
    [
        ("linear", "ce", 0.25),
        ("metric", "tfsd", 0.25),
        ("cosine", "ce", 0.55),
        ("von_mises_fisher", "ce", 0.55),
        ("harmonic", "ce", 0.5),
        ("mixture", "ce", 1.4),
    ],
)
def test_memory_beyond_the_gradients_is_a_share_of_the_logits(head_kind, kind, share):
    """Forward and backward at N = 2048, D = 256, V = 8192, statistics included; and no N x V tensor ever."""
    N, V, D = 2048, 8192, 256
    head, objective = make(head_kind, kind, D, V, dtype=torch.float32)
    h_ND, y_N = data(V, D, N, 0, head, spread=0.1, dtype=torch.float32)
    with _LiveBytes(h_ND, y_N, *head.parameters()) as live:
        chunked_loss(head, objective, h_ND, y_N, statistics=True).objective_sum.backward()
    gradient_bytes = 4 * (h_ND.numel() + sum(p.numel() for p in head.parameters()))
    assert live.largest <= max(chunk_rows(N, V, "cpu") * V, V * D)
    assert live.peak - gradient_bytes <= share * 4 * N * V

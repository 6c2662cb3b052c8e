"""The dual head and its objective, against naive float64 definitions; a run with both."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from analysis.step.whole_loss import whole_loss
from common.errors import InputError
from model import OBJECTIVES, load_model
from model.chunked import chunked_loss, loss_of_features
from model.objectives import Penalty, TokenLogits, WithPenalties, log_partition
from model.teaching import Taught

from ..conftest import rows_of
from . import naive
from .test_chunked import SHAPES
from .test_objectives import assert_same, data, gradients, make
from .test_rows_objectives import half_precision_error


def binary_kl(s_NV, t_NV, temperature):
    """KL of a fair coin from one whose log odds are the difference, for each class: the authors' code without its floor."""
    odds_NV = (s_NV - t_NV) / temperature
    return -(temperature**2) * (0.5 * (F.logsigmoid(odds_NV) + F.logsigmoid(-odds_NV)) + math.log(2))


def made(D, V, N, seed, dtype=torch.float64, **options):
    """A dual head with its objective, data, and a teacher's features."""
    head, objective = make("dual", "dual_head", D, V, {}, {"teacher": "none", **options}, dtype)
    h_ND, y_N = data(V, D, N, seed, head, dtype=dtype)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        head.auxiliary.copy_(torch.randn(head.auxiliary.shape, generator=generator))
    teacher, _ = make("metric", "ce", D, V, dtype=dtype)
    g_ND, _ = data(V, D, N, seed + 2, teacher, dtype=dtype)
    return head, objective, h_ND, y_N, Taught(teacher, g_ND.detach(), teacher.features(g_ND, dtype).detach())


def loss_of(head, objective, h_ND, y_N, taught, rows=4):
    return head(
        h_ND, lambda head, f_ND: loss_of_features(head, objective, f_ND, y_N, statistics=True, rows=rows, taught=taught)
    )


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@given(**SHAPES | {"V": st.integers(3, 40)}, rows=st.integers(1, 31), temperature=st.sampled_from([0.5, 2.0]))
def test_value_and_gradient_are_those_of_the_definition(reduction, standardise, V, D, N, seed, rows, temperature):
    options = {"alpha": 0.7, "temperature": temperature, "reduction": reduction, "standardise": standardise}
    head, objective, h_ND, y_N, taught = made(D, V, N, seed, **options)
    penalty = Penalty("z", lambda t: 0.1 * log_partition(t).square() + t.mean, uses_mean=True)
    losses = loss_of(head, WithPenalties(objective, [penalty]), h_ND, y_N, taught, rows)
    z_NV, s_NV, t_NV = h_ND @ head.weight.T, h_ND @ head.auxiliary.T, taught.logits(slice(None)).detach()
    if standardise:
        s_NV, t_NV = ((x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-7) for x in (s_NV, t_NV))
    binary_NV = binary_kl(s_NV, t_NV, temperature)
    second_N = binary_NV.mean(1) if reduction == "mean" else binary_NV.sum(1)
    extra_N = 0.1 * z_NV.logsumexp(1).square() + z_NV.mean(1)
    expected = (naive.cross_entropy(z_NV, y_N) + 0.7 * second_N + extra_N).sum()
    torch.testing.assert_close(losses.objective_sum, expected, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(losses.nll_sum, naive.cross_entropy(z_NV, y_N).sum(), rtol=1e-9, atol=1e-10)
    leaves = (h_ND, head.weight, head.auxiliary)
    assert_same(gradients(losses.objective_sum, *leaves), gradients(expected, *leaves), 1e-6, 1e-8)


def test_each_logit_s_gradient_is_half_of_t_at_most():
    """T/2 tanh((s - t)/(2T)), at 80 nats as well."""
    apart_NV = torch.tensor([[-80.0, -1.0, 0.0, 0.1, 80.0]], requires_grad=True)
    objective = make("dual", "dual_head", 2, 5, {}, {"teacher": "none", "temperature": 3.0, "reduction": "sum"})[1]
    t = TokenLogits(*[torch.zeros(1)] * 5, taught=torch.zeros(1, 5), auxiliary=apart_NV)
    (found,) = gradients(objective.loss(t).sum(), apart_NV)
    torch.testing.assert_close(found, 1.5 * (apart_NV / 6).tanh().detach(), rtol=1e-5, atol=1e-6)


def test_padding_and_ignored_targets():
    head, objective, h_ND, y_N, taught = made(6, 23, 30, 0)
    for each in (head, taught.head):
        each.n_classes = 20
    y_N = y_N % 20
    y_N[::4] = -100
    keep = y_N != -100
    losses = loss_of(head, objective, h_ND, y_N, taught, 7)
    s_NV, t_NV = h_ND @ head.auxiliary[:20].T, taught.logits(slice(None)).detach()
    each_N = naive.cross_entropy(h_ND[keep] @ head.weight[:20].T, y_N[keep]) + binary_kl(s_NV, t_NV, 2.0)[keep].mean(1)
    leaves = (h_ND, head.weight, head.auxiliary)
    found = gradients(losses.objective_sum, *leaves)
    assert_same(found, gradients(each_N.sum(), *leaves), 1e-6, 1e-8)
    assert bool((found[2][20:] == 0).all())


def test_without_its_objective_it_is_a_linear_head():
    head, ce = make("dual", "ce", 6, 20)
    linear, _ = make("linear", "ce", 6, 20)
    h_ND, y_N = data(20, 6, 30, 0, head)
    with torch.no_grad():
        linear.weight.copy_(head.weight)
    own, other = (chunked_loss(h, ce, h_ND, y_N, rows=7).objective_sum for h in (head, linear))
    assert torch.equal(head(h_ND), linear(h_ND))
    assert_same(gradients(own, h_ND, head.weight), gradients(other, h_ND, linear.weight), 0, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_keep_their_digits(dtype):
    head, objective, h_ND, y_N, taught = made(32, 2000, 40, 0, torch.float32)
    with torch.no_grad():
        for weight in (head.weight, head.auxiliary):
            weight.copy_((0.2 * weight).to(dtype))
    half_ND = h_ND.detach().to(dtype).requires_grad_()
    actual = gradients(loss_of(head, objective, half_ND, y_N, taught).objective_sum, half_ND, *head.parameters())
    h_ND, w_VD, a_VD = (x.detach().double().requires_grad_() for x in (half_ND, head.weight, head.auxiliary))
    t_NV = taught.logits(slice(None)).double()
    expected = (naive.cross_entropy(h_ND @ w_VD.T, y_N) + binary_kl(h_ND @ a_VD.T, t_NV, 2.0).mean(1)).sum()
    exact = gradients(expected, h_ND, w_VD, a_VD)
    usual = half_precision_error("ce", {}, naive.cross_entropy, dtype)
    for a, e in zip(actual, exact, strict=True):
        assert float((a.double() - e).norm() / e.norm()) < 1.5 * usual < 0.02


def test_a_run_learns_from_a_checkpoint_goes_on_to_the_bit_and_generates(start, tmp_path):
    start("name=teacher", "objective.kind=ce")
    checkpoint = next((tmp_path / "teacher" / "checkpoints").glob("step_*12"))
    dual = ["head.kind=dual", "objective.kind=dual_head", f"objective.teacher={checkpoint}"]
    start("name=whole", *dual)
    start("name=parts", *dual, f"branch_from={tmp_path}/whole@8")
    rows = rows_of(tmp_path / "whole")
    assert rows_of(tmp_path / "parts") == rows[8:]
    assert rows[-1]["loss/objective"] - rows[-1]["loss/nll"] < rows[0]["loss/objective"] - rows[0]["loss/nll"]
    model = load_model(next((tmp_path / "whole" / "checkpoints").glob("step_*12")))
    assert model.lm_head.auxiliary.shape == model.lm_head.weight.shape
    made = model.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False, pad_token_id=0)
    with torch.no_grad():
        model.lm_head.auxiliary.zero_()
    again = model.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert torch.equal(made, again)


def test_the_differentiable_loss_of_all_logits_is_the_same(start, tmp_path):
    start("name=run", "head.kind=linear", "objective.kind=ce")
    checkpoint = next((tmp_path / "run" / "checkpoints").glob("step_*12"))
    start("name=dual", "head.kind=dual", "objective.kind=dual_head", f"objective.teacher={checkpoint}")
    model = load_model(next((tmp_path / "dual" / "checkpoints").glob("step_*12")))
    model.objective.teacher.use(load_model(checkpoint), model.lm_head.n_classes)
    x_BT, y_BT = (torch.randint(0, 500, (2, 32), generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    own = model(input_ids=x_BT, shift_labels=y_BT).loss
    torch.testing.assert_close(whole_loss(model, model.objective, x_BT, y_BT), own, rtol=1e-5, atol=1e-6)


def test_head_and_objective_need_each_other(start, tmp_path):
    start("name=teacher", "train.steps=10")
    checkpoint = next((tmp_path / "teacher" / "checkpoints").glob("step_*10"))
    with pytest.raises(
        InputError,
        match=r"objective.kind: dual_head trains an auxiliary head, which metric lacks; use head.kind=dual",
    ):
        start("name=run", "objective.kind=dual_head", f"objective.teacher={checkpoint}")
    with pytest.raises(
        InputError, match=r"objective.kind: ce does not train the auxiliary head of dual; use dual_head, or head.kind=l"
    ):
        start("name=run", "head.kind=dual", "objective.kind=ce")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"alpha": -1.0}, "alpha must be from 0 to 1000, not -1.0"),
        ({"temperature": 0.0}, "temperature must be from 0.01 to 1000, not 0.0"),
    ],
)
def test_options_that_make_no_loss_are_refused(options, expected):
    with pytest.raises(ValueError, match=f"^{expected}$"):
        OBJECTIVES["dual_head"].Options(teacher="none", **options)

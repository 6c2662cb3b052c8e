"""Universal self-distillation, against a naive float64 definition; its running mean in real runs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis.step.whole_loss import whole_loss
from common.errors import InputError
from model import OBJECTIVES, load_model
from model.chunked import chunked_loss
from model.objectives import Penalty, WithPenalties, log_partition
from record.checkpoints import list_checkpoints

from ..conftest import rows_of
from . import naive
from .test_chunked import SHAPES
from .test_objectives import HEADS_TRIED, assert_same, data, gradients, make, naive_logits
from .test_rows_objectives import half_precision_error, random_head


def uskd(z_NV, y_N, beta=0.1, ranks=128, mean_square=0.0):
    """Token by token, ranks by sorting."""
    losses = []
    for z_V, y in zip(z_NV, y_N.tolist(), strict=True):
        others_V = torch.cat([z_V[:y], z_V[y + 1 :]])
        log_p_V = others_V.log_softmax(0).sort(descending=True).values[:ranks]
        zipf = torch.tensor([1 / rank for rank in range(1, len(log_p_V) + 1)], dtype=z_NV.dtype)
        log_p = z_V.log_softmax(0)[y]
        weight = (log_p.exp() ** 2 + 1 - mean_square).detach()
        losses.append(-weight * log_p - beta * (zipf / zipf.sum() * log_p_V).sum())
    return torch.stack(losses)


@pytest.mark.parametrize("name", [name for name in HEADS_TRIED if name != "abstaining"])
@given(**SHAPES, rows=st.integers(1, 31), ranks=st.sampled_from([1, 3, 128]), mean=st.sampled_from([0.0, 0.3]))
def test_value_and_gradient_are_those_of_the_definition(name, V, D, N, seed, rows, ranks, mean):
    kind, options = HEADS_TRIED[name]
    head, objective = make(kind, "uskd", D, V, options, {"ranks": ranks, "beta": 0.5})
    objective.state.move_to(torch.tensor([mean]))
    h_ND, y_N = data(V, D, N, seed, head)
    losses = chunked_loss(head, objective, h_ND, y_N, rows=rows)
    z_NV = naive_logits(head, h_ND)
    expected = uskd(z_NV, y_N, 0.5, ranks, float(objective.state.value)).sum()
    torch.testing.assert_close(losses.objective_sum, expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(losses.nll_sum, naive.cross_entropy(z_NV, y_N).sum(), rtol=1e-9, atol=1e-10)
    leaves = (h_ND, *head.parameters())
    assert_same(gradients(losses.objective_sum, *leaves), gradients(expected, *leaves), 1e-6, 1e-8)


@pytest.mark.parametrize(
    "head_kind", [("cosine", {"margin": 0.3}), ("linear", {"bias": True, "soft_cap": 3.0})], ids=str
)
def test_margins_and_penalties(head_kind):
    head, objective = random_head(*head_kind, "uskd", 6, 20, {"ranks": 5})
    h_ND, y_N = data(20, 6, 30, 0, head)
    penalty = Penalty("z", lambda t: 0.1 * log_partition(t).square() + 0.2 * t.largest + t.mean, True, True)
    losses = chunked_loss(head, WithPenalties(objective, [penalty]), h_ND, y_N, rows=7)
    margin = head_kind[1].get("margin")
    z_NV = naive.with_margin(head(h_ND), y_N, 16.0, margin) if margin else head(h_ND)
    extra_N = 0.1 * z_NV.logsumexp(1).square() + 0.2 * z_NV.amax(1) + z_NV.mean(1)
    expected = (uskd(z_NV, y_N, ranks=5) + extra_N).sum()
    leaves = (h_ND, *head.parameters())
    torch.testing.assert_close(losses.objective_sum, expected, rtol=1e-8, atol=1e-10)
    assert_same(gradients(losses.objective_sum, *leaves), gradients(expected, *leaves), 1e-6, 1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_keep_their_digits(dtype):
    own = half_precision_error("uskd", {}, uskd, dtype)
    assert own < 1.5 * half_precision_error("ce", {}, naive.cross_entropy, dtype) < 0.02


def test_the_mass_that_the_cut_law_has():
    """About ln(ranks)/ln(V), as the docstring says: 0.57 at 128 of 8192."""
    mass = sum(1 / r for r in range(1, 129)) / sum(1 / r for r in range(1, 8192))
    assert mass == pytest.approx(0.57, abs=0.005)
    assert mass == pytest.approx(math.log(128) / math.log(8192), abs=0.04)


@pytest.mark.parametrize("head", ["metric", "linear", "mixture"])
def test_a_run_trains_keeps_its_mean_and_generates(head, start, tmp_path):
    options = ("objective.kind=uskd", f"head.kind={head}", "objective.ranks=20", "train.micro_batch_size=4")
    start("name=whole", *options)
    start("name=parts", *options, f"branch_from={tmp_path}/whole@8")
    rows = rows_of(tmp_path / "whole")
    assert rows_of(tmp_path / "parts") == rows[8:]
    assert rows[-1]["loss/nll"] < rows[0]["loss/nll"]
    mean = 0.0
    for row in rows:
        mean += 0.1 * (row["objective/weight"] - 1)
    model = load_model(list_checkpoints(tmp_path / "whole")[-1])
    assert float(model.objective.state.value) == pytest.approx(mean, rel=1e-3, abs=1e-7)
    assert mean > 0
    made = model.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert made.shape == (1, 5)
    x_BT, y_BT = (torch.randint(0, 500, (2, 32), generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    own = model(input_ids=x_BT, shift_labels=y_BT).loss
    torch.testing.assert_close(whole_loss(model, model.objective, x_BT, y_BT), own, rtol=1e-5, atol=1e-6)


def test_an_abstaining_class_is_refused(start):
    with pytest.raises(
        InputError, match=r"objective.kind: uskd reads all logits, to which head.abstain adds one; leave"
    ):
        start("name=run", "objective.kind=uskd", "head.abstain=true")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"beta": -1.0}, "beta must be from 0 to 1000, not -1.0"),
        ({"ranks": 0}, "ranks must be from 1 to 1048576, not 0"),
    ],
)
def test_options_that_make_no_loss_are_refused(options, expected):
    with pytest.raises(ValueError, match=f"^{expected}$"):
        OBJECTIVES["uskd"].Options(**options)

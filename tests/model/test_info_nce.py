"""InfoNCE over the targets of the batch, against its float64 definition; runs with it, and what they say of its leak."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from analysis.step.whole_loss import whole_loss
from common.errors import InputError
from model import OBJECTIVES, load_model
from model.chunked import chunked_loss
from model.objectives import Penalty, WithPenalties, log_partition

from ..conftest import rows_of
from . import naive
from .test_chunked import SHAPES
from .test_objectives import HEADS_TRIED, assert_same, data, gradients, make, naive_logits
from .test_rows_objectives import HEADS, half_precision_error, random_head


def info_nce(z_NV, y_N, temperature=1.0):
    """Token by token: cross-entropy among the distinct targets of all, the own one first."""
    losses = []
    for z_V, y in zip(z_NV, y_N.tolist(), strict=True):
        others = sorted(set(y_N.tolist()) - {y})
        losses.append(-(z_V[[y, *others]] / temperature).log_softmax(0)[0])
    return torch.stack(losses)


@pytest.mark.parametrize("name", [name for name in HEADS_TRIED if name != "abstaining"])
@given(**SHAPES, rows=st.integers(1, 31), temperature=st.sampled_from([0.1, 1.0, 3.0]))
def test_value_and_gradient_are_those_of_the_definition(name, V, D, N, seed, rows, temperature):
    """Whatever the size of a chunk. The NLL is that of the whole vocabulary."""
    kind, options = HEADS_TRIED[name]
    head, objective = make(kind, "info_nce", D, V, options, {"temperature": temperature})
    h_ND, y_N = data(V, D, N, seed, head)
    losses = chunked_loss(head, objective, h_ND, y_N, rows=rows)
    z_NV = naive_logits(head, h_ND)
    expected_N = info_nce(z_NV, y_N, temperature)
    torch.testing.assert_close(losses.objective_N, expected_N.detach(), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(losses.nll_sum, naive.cross_entropy(z_NV, y_N).sum(), rtol=1e-9, atol=1e-10)
    leaves = (h_ND, *head.parameters())
    expected = torch.autograd.grad(expected_N.sum(), leaves, allow_unused=True, materialize_grads=True)
    assert_same(gradients(losses.objective_sum, *leaves), expected, 1e-6, 1e-9)


@given(**SHAPES)
def test_it_is_the_softmax_over_positions_with_the_logarithm_of_their_frequency_subtracted(V, D, N, seed):
    """Of the targets of all N positions, each with z_k - log(count_k / N): those of the same token are right."""
    head, objective = make("linear", "info_nce", D, V)
    h_ND, y_N = data(V, D, N, seed, head)
    log_q_N = (y_N[:, None] == y_N).double().mean(1).log()
    z_NN = naive_logits(head, h_ND)[:, y_N] - log_q_N
    hits_NN = torch.where(y_N[:, None] == y_N, 0.0, -torch.inf)
    expected = (z_NN.logsumexp(1) - (z_NN + hits_NN).logsumexp(1)).sum()
    actual = chunked_loss(head, objective, h_ND, y_N).objective_sum
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)
    assert_same(gradients(actual, h_ND, head.weight), gradients(expected, h_ND, head.weight), 1e-8, 1e-10)


@pytest.mark.parametrize(("head_kind", "options"), [h for h in HEADS if not h[1].get("abstain")], ids=str)
def test_padding_ignored_targets_margins_and_penalties(head_kind, options):
    """A margin lowers the own logit alone, penalties are over the whole vocabulary, and what is ignored is nobody's negative."""
    head, objective = random_head(head_kind, options, "info_nce", 6, 23)
    head.n_classes = 20
    with torch.no_grad():
        head.weight.fill_(1.0)
    h_ND, y_N = data(20, 6, 30, 0, _Padded(head, 20))
    y_N[::4] = -100
    y_N[0] = 19  # a target that nobody else has
    keep_N = y_N != -100
    penalty = Penalty("z", lambda t: 0.1 * log_partition(t).square() + 0.2 * t.largest + t.mean, True, True)
    losses = chunked_loss(head, WithPenalties(objective, [penalty]), h_ND, y_N, rows=7)
    z_MV = head(h_ND[keep_N])[:, :20]
    y_M = y_N[keep_N]
    z_seen_MV = z_MV if not options.get("margin") else naive.with_margin(z_MV, y_M, 16.0, options["margin"])
    extra_M = 0.1 * z_seen_MV.logsumexp(1).square() + 0.2 * z_seen_MV.amax(1) + z_seen_MV.mean(1)
    expected = (info_nce(z_seen_MV, y_M) + extra_M).sum()
    torch.testing.assert_close(losses.objective_sum, expected, rtol=1e-8, atol=1e-10)
    leaves = (h_ND, *head.parameters())
    assert_same(gradients(losses.objective_sum, *leaves), gradients(expected, *leaves), 1e-6, 1e-9)


class _Padded:
    """The real rows of a head's weight under the name that data() fills."""

    def __init__(self, head, V):
        self.weight = head.weight.data[:V]


def test_a_batch_with_one_target_or_none_has_no_loss():
    head, objective = make("metric", "info_nce", 4, 9)
    for y in (3, -100):
        h_ND, y_N = data(9, 4, 6, 0, head)
        losses = chunked_loss(head, objective, h_ND, torch.full_like(y_N, y))
        assert float(losses.objective_sum.detach()) == 0
        assert all(bool((g == 0).all()) for g in gradients(losses.objective_sum, h_ND, head.weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_keep_their_digits(dtype):
    own = half_precision_error("info_nce", {"temperature": 0.5}, lambda z, y: info_nce(z, y, 0.5), dtype)
    assert own < 1.5 * half_precision_error("ce", {}, naive.cross_entropy, dtype) < 0.02


def test_the_differentiable_loss_of_all_logits_is_the_same(start, tmp_path):
    start("name=run", "objective.kind=info_nce", "objective.temperature=2.0")
    model = load_model(next((tmp_path / "run" / "checkpoints").glob("step_*12")))
    x_BT, y_BT = (torch.randint(0, 500, (2, 32), generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    y_BT[0, :9] = -100
    own = model(input_ids=x_BT, shift_labels=y_BT).loss
    torch.testing.assert_close(whole_loss(model, model.objective, x_BT, y_BT), own, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", ["metric", "linear", "harmonic"])
def test_a_run_trains_says_that_it_leaks_resumes_and_generates(head, start, tmp_path, capfd):
    options = ("objective.kind=info_nce", f"head.kind={head}", "train.micro_batch_size=4")
    start("name=whole", *options)
    assert (
        "note: objective.kind: info_nce: the negatives of a token are the targets of its micro-batch, those of later positions "
        "too; its training losses know what is still to come" in capfd.readouterr().err
    )
    start("name=parts", *options, f"branch_from={tmp_path}/whole@8")
    rows = rows_of(tmp_path / "whole")
    assert rows_of(tmp_path / "parts") == rows[8:]
    assert rows[-1]["loss/nll"] < rows[0]["loss/nll"]
    assert rows[-1]["loss/objective"] < rows[-1]["loss/nll"]  # some 60 of 500 tokens are in a micro-batch
    model = load_model(next((tmp_path / "whole" / "checkpoints").glob("step_*12")))
    made = model.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert made.shape == (1, 5)


def test_only_what_mixes_positions_is_told(start, capfd):
    start("name=plain", "objective.kind=ce")
    assert "still to come" not in capfd.readouterr().err
    start("name=normed", "objective.kind=ce", "head.feature_norm=batchnorm")
    assert (
        "note: head.kind: metric: in training, feature_norm=batchnorm takes means over all positions of the micro-batch, later "
        "ones too; its training losses know what is still to come" in capfd.readouterr().err
    )


@pytest.mark.parametrize(
    "kind", [kind for kind, cls in OBJECTIVES.items() if "teacher" not in cls.Options.__dataclass_fields__]
)
def test_an_objective_mixes_positions_exactly_if_it_says_so(kind):
    """The losses of the first tokens do not change with the later tokens' states and targets, unless it says that they may."""
    head, objective = make("linear", kind, 6, 20)
    h_ND, y_N = data(20, 6, 12, 0, head)
    other_ND, other_N = h_ND.detach().clone(), y_N.clone()
    other_ND[6:], other_N[6:] = -other_ND[6:], (other_N[6:] + 7) % 20
    found = [chunked_loss(head, objective, h, y).objective_N[:6] for h, y in ((h_ND, y_N), (other_ND, other_N))]
    assert torch.equal(*found) == (not objective.mixes_positions)


def test_an_abstaining_class_is_refused(start):
    with pytest.raises(
        InputError, match=r"objective.kind: info_nce reads no logit that head.abstain adds; leave head.ab"
    ):
        start("name=run", "objective.kind=info_nce", "head.abstain=true")


def test_a_temperature_that_makes_no_loss_is_refused():
    with pytest.raises(ValueError, match=r"^temperature must be from 0.01 to 1000, not 0.0$"):
        OBJECTIVES["info_nce"].Options(temperature=0.0)

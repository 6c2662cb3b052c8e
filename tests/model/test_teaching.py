"""Objectives with a teacher, against naive float64 definitions; a run that learns from another run's checkpoint."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config

from common.errors import InputError
from model import OBJECTIVES, SwapHeadConfig, load_model, new_model
from model.chunked import loss_of_features
from model.objectives import of_rows
from model.teaching import Taught, Teacher
from record.checkpoints import list_checkpoints

from ..conftest import ROOT, rows_of
from ..training.built import built
from . import naive
from .test_objectives import SHAPES, assert_same, data, gradients, make, naive_logits


def distilled(z_NV, r_NV, y_N, alpha=0.7, temperature=2.0, standardise=False):
    if standardise:
        z_NV, r_NV = ((x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-7) for x in (z_NV, r_NV))
    kl_N = F.kl_div((z_NV / temperature).log_softmax(1), (r_NV / temperature).softmax(1), reduction="none").sum(1)
    return alpha * temperature**2 * kl_N


def full_distillation(z_NV, r_NV, y_N, alpha=0.7, **options):
    return (1 - alpha) * naive.cross_entropy(z_NV, y_N) + distilled(z_NV, r_NV, y_N, alpha, **options)


def normalised(z_NV, r_NV, y_N, alpha=0.8, gamma=1.5, temperature=2.0, standardise=False):
    """Target by target, with the other classes picked out."""
    losses = []
    for z_V, r_V, y in zip(z_NV, r_NV, y_N.tolist(), strict=True):
        others = [k for k in range(len(z_V)) if k != y]
        s_V, q_V = ((x - x.mean()) / (x.std() + 1e-7) if standardise else x for x in (z_V, r_V))
        rest = -((q_V[others] / temperature).softmax(0) * (s_V[others] / temperature).log_softmax(0)).sum()
        nkd = -r_V.softmax(0)[y] * z_V.log_softmax(0)[y] + gamma * temperature**2 * rest
        losses.append(-z_V.log_softmax(0)[y] + alpha * nkd)
    return torch.stack(losses)


CASES = {
    "distill": ("distill", {"alpha": 0.7, "temperature": 2.0}, full_distillation),
    "standardised": (
        "distill",
        {"alpha": 0.7, "temperature": 2.0, "standardise": True},
        lambda z, r, y: full_distillation(z, r, y, standardise=True),
    ),
    "nkd": ("nkd", {"alpha": 0.8, "gamma": 1.5, "temperature": 2.0}, normalised),
    "nkd, standardised": (
        "nkd",
        {"alpha": 0.8, "gamma": 1.5, "temperature": 2.0, "standardise": True},
        lambda z, r, y: normalised(z, r, y, standardise=True),
    ),
}


def taught_loss(head, objective, teacher, h_ND, g_ND, y_N):
    """The loss on hidden states h_ND of a student and g_ND of a teacher."""
    taught = Taught(teacher, g_ND, teacher.features(g_ND, torch.float64).detach())
    return head(
        h_ND, lambda head, f_ND: loss_of_features(head, objective, f_ND, y_N, rows=4, taught=taught)
    ).objective_sum


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("head_kind", ["linear", "metric"])
@given(**(SHAPES | {"V": st.integers(3, 40)}))
def test_value_and_gradient_are_those_of_the_definition(case, head_kind, V, D, N, seed):
    kind, options, definition = CASES[case]
    head, objective = make(head_kind, kind, D, V, {}, {"teacher": "none", **options})
    teacher, _ = make("linear", "ce", D, V)
    h_ND, y_N = data(V, D, N, seed, head)
    g_ND, _ = data(V, D, N, seed + 1, teacher)
    actual = taught_loss(head, objective, teacher, h_ND, g_ND, y_N)
    expected = definition(naive_logits(head, h_ND), naive_logits(teacher, g_ND).detach(), y_N).sum()
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9)
    assert_same(gradients(actual, h_ND, head.weight), gradients(expected, h_ND, head.weight), 1e-6, 1e-8)


@given(seed=st.integers(0, 1000))
def test_standardised_distillation_moves_neither_mean_nor_scale_of_the_logits(seed):
    """Its gradient is orthogonal to the ones and to the logits (but for the 1e-7 beside the standard deviation)."""
    generator = torch.Generator().manual_seed(seed)
    z_NV, r_NV = (torch.randn(5, 30, generator=generator, dtype=torch.float64) for _ in range(2))
    options = OBJECTIVES["distill"].Options(teacher="none", alpha=1.0, standardise=True)
    t = of_rows(z_NV.requires_grad_(), torch.zeros(5, dtype=torch.long), torch.zeros(5), r_NV)
    (d_NV,) = gradients(OBJECTIVES["distill"](options).loss(t).sum(), z_NV)
    z_NV = z_NV.detach()
    size_N = d_NV.norm(dim=1)
    assert float((d_NV.sum(1) / size_N).abs().max()) < 1e-9
    assert float(((d_NV * z_NV).sum(1) / size_N / z_NV.norm(dim=1)).abs().max()) < 1e-5


def test_a_student_that_is_its_own_teacher_learns_nothing_from_it():
    """Distillation alone is at its minimum, and NKD leaves cross-entropy weighted by 1 + p_y (poly1)."""
    head, alone = make("metric", "distill", 6, 20, {}, {"teacher": "none", "alpha": 1.0})
    h_ND, y_N = data(20, 6, 15, 0, head)
    gradient = gradients(taught_loss(head, alone, head, h_ND, h_ND, y_N), h_ND)[0]
    assert float(gradient.abs().max()) < 1e-12
    nkd = make("metric", "nkd", 6, 20, {}, {"teacher": "none"})[1]
    poly1 = make("metric", "poly1", 6, 20, {}, {"epsilon": 1.0})[1]
    own, other = (taught_loss(head, objective, head, h_ND, h_ND, y_N) for objective in (nkd, poly1))
    assert_same(gradients(own, h_ND, head.weight), gradients(other, h_ND, head.weight), 1e-8, 1e-11)


def test_a_run_learns_from_a_checkpoint_of_another_and_goes_on_to_the_bit(start, tmp_path):
    start("name=teacher")
    checkpoint = next((tmp_path / "teacher" / "checkpoints").glob("step_*12"))
    born = ["objective.kind=distill", f"objective.teacher={checkpoint}", "objective.alpha=0.9"]
    whole = start("name=whole", *born)
    start("name=parts", *born, f"branch_from={tmp_path}/whole@8")
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")[8:]
    first, of_teacher = (rows_of(tmp_path / name)[0] for name in ("whole", "teacher"))
    assert first["loss/nll"] == of_teacher["loss/nll"]
    assert first["loss/objective"] != of_teacher["loss/objective"]
    assert whole == 0
    model = load_model(next((tmp_path / "whole" / "checkpoints").glob("step_*12")))
    assert model.objective.options.alpha == 0.9
    assert not any("teach" in name for name, _ in model.named_parameters())


def test_a_teacher_that_cannot_be_used_is_one_line_and_leaves_nothing(start, tmp_path):
    distill = ("name=student", "objective.kind=distill", f"objective.teacher={tmp_path}/nowhere")
    with pytest.raises(InputError, match=r"objective.teacher: there is no checkpoint at .*nowhere; give one of an ear"):
        start(*distill)
    with pytest.raises(InputError, match=r"objective.kind: distill reads all logits, to which head.abstain adds one"):
        start(*distill, "head.abstain=true")
    assert not (tmp_path / "student").exists()
    start("name=teacher")
    last = tmp_path / "teacher" / "checkpoints" / "step_00000012"
    for named in (tmp_path / "teacher", last.with_name("step_12")):
        with pytest.raises(InputError, match=f"objective.teacher: there is no checkpoint at {named}; there is {last}"):
            start("name=student", "objective.kind=distill", f"objective.teacher={named}")


def test_a_teacher_that_has_changed_or_knows_another_text_is_refused(start, tmp_path):
    """A run goes on with the teacher it began with; as many tokens are not the same tokens."""
    start("name=teacher")
    checkpoint = tmp_path / "teacher" / "checkpoints" / "step_00000012"
    distill = ("objective.kind=distill", f"objective.teacher={checkpoint}")
    start("name=student", *distill)
    shutil.rmtree(tmp_path / "teacher")
    start("name=teacher", "seed=5")
    with pytest.raises(InputError, match=r"objective.teacher: .* is not what it was when .*step_00000008 was written"):
        start("name=later", *distill, f"branch_from={tmp_path}/student@8")
    shutil.rmtree(tmp_path / "teacher")
    (tmp_path / "other.txt").write_text((ROOT / "docs" / "mathematics.md").read_text())
    start("name=teacher", f"data.paths=[{tmp_path}/other.txt]", "train.eval_sequences=1")
    with pytest.raises(
        InputError, match=r"objective.teacher: .* has another tokenizer than the text, so it predicts other"
    ):
        start("name=other", *distill)
    assert not (tmp_path / "other").exists()


def test_a_teacher_for_shorter_sequences_is_refused(start, tmp_path):
    start("name=short", "train.steps=10", "data.sequence_length=16")
    teacher = list_checkpoints(tmp_path / "short")[-1]
    with pytest.raises(
        InputError, match=r"^objective.teacher: .* it has fewer positions than data.sequence_length=32; g"
    ):
        start("name=student", "objective.kind=distill", f"objective.teacher={teacher}")


@pytest.mark.parametrize("objective", ["{kind: distill", "{kind: geometry, form: projection"])
def test_a_teacher_with_the_head_of_a_plug_in_that_is_not_imported_is_one_line(objective, tmp_path, recipe):
    new_model(SwapHeadConfig(GPT2Config(n_layer=1, n_head=2, n_embd=8)), 0).save_pretrained(tmp_path / "teacher")
    file = tmp_path / "teacher" / "config.json"
    file.write_text(file.read_text().replace('"kind": "linear"', '"kind": "of_mine"'))
    with pytest.raises(
        InputError, match=r"^objective.teacher: .* cannot be used: unknown kind 'of_mine'; registered: "
    ):
        built(recipe, "head={kind: linear}", f"objective={objective}, teacher: {tmp_path}/teacher}}")


def test_a_teacher_of_another_vocabulary_is_refused():
    class Other:
        lm_head = make("linear", "ce", 4, 7)[0]

    with pytest.raises(ValueError, match="it predicts 7 tokens, not 8"):
        Teacher("there").use(Other(), 8)
    with pytest.raises(ValueError, match="it is no model of this project"):
        Teacher("there").use(torch.nn.Linear(1, 1), 8)


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("distill", {"alpha": -1.0}, "alpha must be from 0 to 1, not -1.0"),
        ("distill", {"temperature": 0.0}, "temperature must be from 0.01 to 1000, not 0.0"),
        ("nkd", {"gamma": -1.0}, "gamma must be from 0 to 1000, not -1.0"),
        ("nkd", {"temperature": 0.0}, "temperature must be from 0.01 to 1000, not 0.0"),
    ],
)
def test_options_that_make_no_loss_are_refused(kind, options, expected):
    with pytest.raises(ValueError, match=f"^{expected}$"):
        OBJECTIVES[kind].Options(teacher="none", **options)

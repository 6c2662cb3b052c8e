"""Distillation from the model of one step ago: against its definition, and in runs that are resumed, branched and replayed."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import torch.nn.functional as F

from analysis.replay.__main__ import main as replay
from common.errors import InputError
from record.checkpoints import list_checkpoints
from tests.conftest import rows_of
from tests.stability.intervene.test_remedies_in_runs import trained, weights
from tests.training.built import built
from training.step import training_step

REMEDY = "interventions=[{kind: last_step, weight: 0.7, temperature: 2.0}]"


def logits_of(model, parameters, x_BT):
    """Of the model with other parameters."""
    with torch.no_grad():
        return torch.func.functional_call(model, parameters, (x_BT,)).logits.flatten(0, 1)


@pytest.mark.parametrize("head", ["linear", "metric", "harmonic"])
def test_it_is_the_divergence_from_the_last_step_s_prediction(head, recipe):
    """Value and gradient after three steps, two micro-batches each, with the parameters before the last of them as teacher."""
    run = built(recipe, REMEDY, "objective.kind=ce", f"head.kind={head}", "train.micro_batch_size=4")
    model, x_BT = run.bare_model(), run.probe_BT[:, :16]
    for step in (1, 2, 3):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        training_step(run, step)
    run.interventions["last_step"].begin(4)
    r_NV = logits_of(model, before, x_BT[:, :-1])
    model.train()
    loss = model(input_ids=x_BT[:, :-1], shift_labels=x_BT[:, 1:], use_cache=False).loss
    z_NV = model(input_ids=x_BT[:, :-1], use_cache=False).logits.flatten(0, 1)
    kl_N = F.kl_div((z_NV / 2).log_softmax(1), (r_NV / 2).softmax(1), reduction="none").sum(1)
    expected = F.cross_entropy(z_NV, x_BT[:, 1:].flatten()) + 0.7 * 4 * kl_N.mean()
    assert float(kl_N.mean().detach()) > 1e-6
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    own, other = (torch.autograd.grad(each, list(model.parameters())) for each in (loss, expected))
    for a, b in zip(own, other, strict=True):
        assert float((a - b).norm()) <= 1e-4 * float(b.norm()) + 1e-7
    with torch.no_grad():
        evaluated = model.eval()(input_ids=x_BT[:, :-1], shift_labels=x_BT[:, 1:], use_cache=False).loss
    torch.testing.assert_close(evaluated, F.cross_entropy(z_NV, x_BT[:, 1:].flatten()))


def test_it_begins_with_nothing_to_resist_and_goes_on_to_the_bit(recipe, tmp_path):
    short = ("train.steps=20", "telemetry.edge_every=5")
    whole = trained(recipe, "name=whole", *short, REMEDY)
    rows = rows_of(whole)
    penalties = [row["intervention/last_step/penalty"] for row in rows]
    assert penalties[0] == pytest.approx(0, abs=1e-6)
    assert all(penalty > 1e-6 for penalty in penalties[1:])
    assert rows[-1]["loss/nll"] < rows[0]["loss/nll"]
    broken = trained(recipe, "name=broken", *short, REMEDY)
    shutil.rmtree(broken / "checkpoints" / "step_00000020")
    (broken / "status.json").unlink()
    trained(recipe, "name=broken", *short, REMEDY)
    assert rows_of(broken) == rows
    again = weights(broken)
    assert all(torch.equal(again[name], weight) for name, weight in weights(whole).items())
    out = tmp_path / "out"
    replay([str(whole), "--step", "15", "--out", str(out), "--window", "2"])
    found = json.loads((out / "explanation.json").read_text())
    assert found["reproduced"], found["disagreements"]
    assert not any("last_step" in name for name in again)
    late = trained(recipe, "name=late", *short, REMEDY, f"branch_from={tmp_path}/whole@10")
    assert rows_of(late) == rows[10:]


def test_a_branch_begins_with_the_parameters_it_is_given(recipe, tmp_path):
    trained(recipe, "name=plain", "train.steps=20")
    late = trained(recipe, "name=late", "train.steps=20", REMEDY, f"branch_from={tmp_path}/plain@10")
    assert rows_of(late)[0]["intervention/last_step/penalty"] == pytest.approx(0, abs=1e-6)


def test_without_weight_the_run_is_the_same(recipe):
    """But for rounding: the gradient is then taken from whole rows."""
    runs = [
        trained(recipe, f"name={name}", "train.steps=10", *more)
        for name, more in (("plain", ()), ("idle", ("interventions=[{kind: last_step, weight: 0.0}]",)))
    ]
    plain, idle = map(rows_of, runs)
    assert [row["loss/nll"] for row in idle] == pytest.approx([row["loss/nll"] for row in plain], rel=1e-4)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("head.abstain=true", "compares all logits, to which head.abstain adds one; leave head.abstain out"),
        (
            "head={kind: cosine, margin: 0.2}",
            "compares predictions, of which head.margin changes one in training alone; leave head.margin out",
        ),
        (
            "head.feature_norm=batchnorm",
            "keeps parameters, and head.feature_norm=batchnorm has running means; use layern",
        ),
        ("body.sigma_reparam=true", "knows no body.sigma_reparam; leave it out"),
    ],
)
def test_what_a_copy_of_the_parameters_does_not_tell_is_refused(override, reason, recipe):
    with pytest.raises(InputError, match=f"interventions: last_step {reason}"):
        built(recipe, REMEDY, "objective.kind=ce", override)


def test_two_teachers_are_refused(recipe):
    teacher = list_checkpoints(trained(recipe, "name=teacher", "train.steps=10"))[-1]
    with pytest.raises(
        InputError, match="interventions: last_step is a teacher, and the objective has one; take another"
    ):
        built(recipe, REMEDY, "objective.kind=distill", f"objective.teacher={teacher}")

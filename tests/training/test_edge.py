"""What a run measures around its updates, against the same computed from its checkpoints."""

import copy
import math

import pytest
import torch

from training.step import step_batch, training_step

from .built import built


def loss_of(model, x_BT, y_BT):
    """The mean objective of a batch, summed in float64."""
    model.eval()
    with torch.no_grad():
        losses = model(input_ids=x_BT, shift_labels=y_BT, skip_logits=True, use_cache=False).losses
    return float((losses.objective_N.double() * losses.valid_N).sum() / losses.valid_N.sum())


def gradient_of(model, x_BT, y_BT):
    model.train()
    out = model(input_ids=x_BT, shift_labels=y_BT, skip_logits=True, use_cache=False)
    return torch.autograd.grad(out.loss, list(model.parameters()))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("train.micro_batch_size=4", "objective.kind=ce", "head.kind=linear"),
        ("body.resid_pdrop=0.1",),
        ("stress=[{kind: corrupt_sequences, step: 1, steps: 9, sequences: 2, pattern: random}]",),
    ],
    ids=["whole", "in parts", "dropout", "stress"],
)
def test_kappa_is_what_the_step_did_over_what_the_slope_promised(recipe, overrides):
    run = built(recipe, "telemetry.edge_every=1", *overrides)
    for step in (1, 2, 3):
        before = copy.deepcopy(run.bare_model())
        run.step = step - 1
        x_BT, y_BT = step_batch(run, step)
        training_step(run, step)
    (*_, row) = run.recorder.transfer().rows
    after = run.bare_model()
    change = loss_of(after, x_BT, y_BT) - loss_of(before, x_BT, y_BT)
    d = [(b - a).detach().double() for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    if "body.resid_pdrop=0.1" not in overrides:  # whose gradient has another mask
        gradient = gradient_of(before, x_BT, y_BT)
        promised = float(sum((g.double() * each).sum() for g, each in zip(gradient, d, strict=True)))
        assert row["edge/promised"] == pytest.approx(promised, rel=1e-3)
    assert row["edge/promised"] < 0
    assert row["edge/kappa"] == pytest.approx(change / row["edge/promised"], rel=1e-3)
    assert 0 < row["edge/logit_change_p50"] <= row["edge/logit_change_p99"] <= row["edge/logit_change_max"]
    assert ("noise/variance" in row) == ("train.micro_batch_size=4" in overrides)


def test_statistics_of_the_batch_are_no_part_of_what_the_step_did(recipe):
    """In training the loss is of the batch's own statistics, in an evaluation of running ones."""
    run = built(
        recipe, "telemetry.edge_every=1", "objective.kind=ce", "head.feature_norm=batchnorm", "optimizer.lr=1e-5"
    )
    for step in (1, 2, 3):
        training_step(run, step)
    (*_, row) = run.recorder.transfer().rows
    assert row["edge/kappa"] == pytest.approx(1, abs=0.2)


def test_the_slope_is_that_of_the_loss_not_of_what_clipping_leaves(recipe):
    promised = []
    for limit in ("0.1", "null"):
        run = built(recipe, "telemetry.edge_every=1", f"optimizer.clip_norm={limit}")
        training_step(run, 1)
        promised.append(run.recorder.transfer().rows[0]["edge/promised"])
    assert promised[0] == pytest.approx(promised[1], rel=1e-3), (
        "Adam's first step does not depend on the gradient's size"
    )


def test_measuring_changes_nothing(recipe):
    models = []
    for every in ("1", "null"):
        run = built(recipe, f"telemetry.edge_every={every}", "body.resid_pdrop=0.1")
        for step in (1, 2, 3):
            training_step(run, step)
        rows = run.recorder.transfer().rows
        assert all(("edge/kappa" in row) == (every == "1") for row in rows)
        models.append((run.bare_model().state_dict(), [row["loss/nll"] for row in rows]))
    assert models[0][1] == models[1][1]
    assert all(torch.equal(a, b) for a, b in zip(models[0][0].values(), models[1][0].values(), strict=True))


def test_a_far_too_large_step_raises_its_own_loss(recipe):
    run = built(recipe, "telemetry.edge_every=1", "stress=[{kind: scale_lr, step: 3, factor: 1000.0}]")
    for step in (1, 2, 3):
        training_step(run, step)
    values = [row["edge/kappa"] for row in run.recorder.transfer().rows]
    assert values[1] > 0.5
    assert values[2] < 0
    assert all(map(math.isfinite, values))


def test_with_a_penalty_kappa_is_still_1_for_a_step_that_is_small(recipe):
    """The slope contains the penalty's, so the loss must, too."""
    run = built(recipe, "telemetry.edge_every=1", "interventions=[{kind: z_loss, weight: 0.1}]", "optimizer.lr=1.0e-5")
    for step in (1, 2, 3):
        training_step(run, step)
    for row in run.recorder.transfer().rows:
        assert row["edge/kappa"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("objective", "whole"), [("ce", True), ("tfsd", False)])
def test_of_an_objective_with_a_detached_weight_that_is_not_1_kappa_is_not_1_for_a_step_that_is_small(
    recipe, objective, whole
):
    """The training gradient is not that of the objective, so that the slope promises something else (docs/mathematics.md)."""
    head = "head={kind: metric, scale: article}"
    run = built(recipe, "telemetry.edge_every=1", head, f"objective.kind={objective}", "optimizer.lr=1.0e-5")
    for step in (1, 2, 3):
        training_step(run, step)
    for row in run.recorder.transfer().rows:
        assert (row["edge/kappa"] == pytest.approx(1, abs=0.05)) == whole

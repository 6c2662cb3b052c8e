"""Remedies that act through loss, forward pass and weights, in real runs: without effect where they never act; where they do, bit
for bit the same after a kill and in a replay."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from analysis.replay.__main__ import main as replay
from common.errors import InputError
from configs.load import load_config
from model import load_model
from record.checkpoints import list_checkpoints
from tests.conftest import events_of, rows_of
from tests.distributed.ranks import Ranks
from tests.distributed.test_world_sizes import assert_same_weights
from tests.training.built import built
from train_lm import train
from training.run import attach_interventions
from training.step import training_step

SHORT = ("train.steps=10", "train.eval_every=5", "checkpoint.every=10")
NEVER = (
    "{kind: z_loss, weight: 0.0}",
    "{kind: z_loss, weight: 0.0, gauge: relative}",
    "{kind: max_z, weight: 0.0}",
    "{kind: repel, weight: 0.0}",
    "{kind: mu_loss, weight: 0.0}",
    "{kind: qk_clip, threshold: 1.0e+9}",
    "{kind: shrink_embedding_gradient, factor: 1.0}",
)
ALL = (
    "{kind: z_loss, weight: 1.0e-3, gauge: relative}, {kind: max_z, weight: 1.0e-3}, {kind: repel}, {kind: centre_embeddings}, "
    "{kind: mu_loss, weight: 1.0}, {kind: qk_clip, threshold: 0.03, every: 2, sequences: 8}, {kind: shrink_embedding_gradient}"
)

PENALTIES = [f"intervention/{kind}/penalty" for kind in ("z_loss", "max_z", "repel")]


def trained(recipe, *overrides):
    AcceleratorState._reset_state(reset_partial_state=True)
    config = load_config(recipe["path"], [*recipe["overrides"], *overrides])
    assert train(config) == 0
    return Path(config.output_dir) / config.name


@pytest.fixture(scope="module")
def untreated(workspace, tmp_path_factory):
    folder = tmp_path_factory.mktemp("untreated")
    return trained({"path": workspace / "tiny.yaml", "overrides": [f"output_dir={folder}"]}, *SHORT)


def weights(run):
    return load_file(list_checkpoints(run)[-1] / "model.safetensors")


@pytest.mark.parametrize("remedy", NEVER)
def test_a_remedy_that_never_acts_changes_nothing(remedy, untreated, recipe):
    run = trained(recipe, *SHORT, f"interventions=[{remedy}]")
    treated = [{k: v for k, v in row.items() if "intervention/" not in k} for row in rows_of(run)]
    usual = [{k: v for k, v in row.items() if "intervention/" not in k} for row in rows_of(untreated)]
    assert treated == usual
    after, before = weights(run), weights(untreated)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_all_at_once_resume_and_replay_to_the_bit(recipe, tmp_path):
    remedies = f"interventions=[{ALL}]"
    rows = rows_of(trained(recipe, "name=whole", "train.steps=20", remedies))
    assert all(row[penalty] > 0 for row in rows for penalty in PENALTIES)
    assert all(row["intervention/centre_embeddings/mean_norm"] > 0 for row in rows)
    assert [row["step"] for row in rows if "intervention/qk_clip/heads" in row] == list(range(2, 21, 2))
    assert sum(row.get("intervention/qk_clip/heads", 0) for row in rows) > 0
    for row in rows:
        added = sum(row[penalty] for penalty in PENALTIES)
        assert row["loss/objective"] == pytest.approx(row["loss/nll"] + added, rel=0.02), "TFSD is nearly the NLL here"
    model = load_model(list_checkpoints(tmp_path / "whole")[-1])
    assert float(model.lm_head.weight.detach()[: model.config.n_classes].mean(0).norm()) < 1e-7, (
        "as it was left by the last step"
    )
    trained(recipe, "name=broken", "train.steps=20", remedies)
    shutil.rmtree(tmp_path / "broken" / "checkpoints" / "step_00000020")
    (tmp_path / "broken" / "status.json").unlink()
    trained(recipe, "name=broken", "train.steps=20", remedies)
    assert [e["event"] for e in events_of(tmp_path / "broken")] == ["resume"]
    assert rows_of(tmp_path / "broken") == rows
    whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(broken[name], weight) for name, weight in whole.items())
    out = tmp_path / "out"
    replay([str(tmp_path / "whole"), "--step", "15", "--out", str(out), "--window", "2", "--counterfactual", "lr=3e-3"])
    found = json.loads((out / "explanation.json").read_text())
    assert found["reproduced"], found["disagreements"]
    (same,) = json.loads((out / "counterfactuals.json").read_text())  # the run's own rate: nothing changes
    assert same["changed"] == same["factual"]


def test_penalties_are_part_of_training_alone(recipe):
    """The validation objective is the objective's own, and interventions that are replaced leave nothing behind."""
    run = built(recipe, "interventions=[{kind: z_loss, weight: 1.0}]", "objective.kind=ce")
    model, x_BT = run.bare_model(), run.probe_BT[:, :16]

    def losses(mode):
        model.train(mode)
        with torch.no_grad():
            return model(input_ids=x_BT, labels=x_BT, use_cache=False, skip_logits=True).losses

    training, validation = losses(True), losses(False)
    assert float(training.objective_sum) > float(training.nll_sum) + 1
    assert torch.equal(validation.objective_sum, validation.nll_sum)
    attach_interventions(run, {})
    assert torch.equal(losses(True).objective_sum, validation.objective_sum)


def test_a_step_that_is_not_taken_changes_nothing(recipe):
    """A NaN in one gradient; QK-clip and centring would act otherwise."""
    run = built(recipe, "interventions=[{kind: centre_embeddings}, {kind: qk_clip, threshold: 1.0e-4}]")
    poisoned = run.telemetry.parameters[2].register_hook(lambda gradient: gradient * torch.nan)
    before = [p.detach().clone() for p in run.telemetry.parameters]
    training_step(run, 1)
    assert all(torch.equal(p, b) for p, b in zip(run.telemetry.parameters, before, strict=True))
    poisoned.remove()


@pytest.mark.parametrize(
    ("sharded", "remedies"),
    [(False, ALL), (True, ALL.replace(", {kind: qk_clip, threshold: 0.03, every: 2, sequences: 8}", ""))],
    ids=["DDP", "FSDP2"],
)
def test_two_ranks_follow_one(sharded, remedies, recipe, tmp_path):
    """With a padded vocabulary, which FSDP2 divides in the middle of the padding or elsewhere."""
    options = (*SHORT, f"interventions=[{remedies}]", "body.pad_vocab_to_multiple_of=96")
    trained(recipe, "name=one", *options)
    ended = Ranks(recipe, "name=two", *options, sharded=sharded).wait()
    assert [status for status, _ in ended] == [0, 0], ended
    a, b = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert [r.keys() for r in a] == [r.keys() for r in b]
    for x, y in zip(a, b, strict=True):
        assert {k: v for k, v in x.items() if k.endswith("heads")} == {
            k: v for k, v in y.items() if k.endswith("heads")
        }
        for name in ("loss/nll", "loss/objective", *PENALTIES):
            assert x[name] == pytest.approx(y[name], rel=1e-4), name
        assert x["intervention/centre_embeddings/mean_norm"] == pytest.approx(
            y["intervention/centre_embeddings/mean_norm"], rel=1e-2
        )
    assert_same_weights(tmp_path / "one", tmp_path / "two")


def test_sharded_weights_are_not_clipped(recipe):
    ended = Ranks(recipe, *SHORT, "interventions=[{kind: qk_clip}]", sharded=True).wait()
    assert [status for status, _ in ended] == [2, 2]
    assert any(
        "error: interventions: qk_clip cannot scale sharded weights; launch without FSDP" in told for _, told in ended
    )


def test_repulsion_needs_distances(recipe):
    with pytest.raises(
        InputError, match="interventions: repel needs a head with distances, whose logits end at 0; use h"
    ):
        trained(recipe, "head.kind=linear", "objective.kind=ce", "interventions=[{kind: repel}]")

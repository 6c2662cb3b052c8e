"""Runs whose body is reparametrised by spectral norms: what they write is a plain model, and they go on from it to the bit."""

import json
import math
import shutil

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from analysis.replay import __main__ as replay
from analysis.step import __main__ as step_command
from common.command import exit_status
from configs.load import load_config
from data.batches import evaluation_batches
from data.store import open_store
from model import blocks, load_model
from model.sigma_reparam import linear_layers, power_step, scales, stored_weight
from record.checkpoints import list_checkpoints
from stability.intervene.agc import AdaptiveClip
from tests.conftest import events_of, rows_of
from train_lm import train
from training.step import disturb_state, training_step

from .built import built
from .test_step import HostReads

ON = "body.sigma_reparam=true"
FILES = ("model.safetensors", "optimizer.safetensors", "sigma_reparam.safetensors")


def trained(path, *overrides):
    AcceleratorState._reset_state(reset_partial_state=True)
    config = load_config(path, overrides)
    return config, exit_status(lambda: train(config))


@pytest.fixture(scope="module")
def original(workspace, tmp_path_factory):
    """A run and its configuration; tests that change it have a copy."""
    folder = tmp_path_factory.mktemp("reparametrised")
    config, status = trained(workspace / "tiny.yaml", f"output_dir={folder}", "name=run", "checkpoint.keep=9", ON)
    assert status == 0
    return config, folder / "run"


def assert_same_checkpoint(one, other):
    for name in FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_a_checkpoint_is_the_plain_model_whose_validation_nll_was_recorded(original):
    config, run = original
    last = list_checkpoints(run)[-1]
    assert not [name for name in load_file(last / "model.safetensors") if "parametrizations" in name]
    assert "sigma_reparam" not in (last / "config.json").read_text()
    model = load_model(last)
    store = open_store(config.data)
    nll = count = 0.0
    for x_BT, y_BT in evaluation_batches(store.validation.ids, config.data.sequence_length, 16, 8):
        out = model(input_ids=x_BT, shift_labels=y_BT, skip_logits=True)
        nll, count = nll + float(out.losses.nll_sum), count + float(out.losses.valid_N.sum())
    assert nll / count == pytest.approx(rows_of(run)[-1]["validation/nll"], rel=1e-5)
    own = load_file(last / "sigma_reparam.safetensors")
    assert len(torch.cat([tensor for name, tensor in own.items() if name.endswith("original1")])) == 2 * 6
    names = [name for name in load_file(last / "model.safetensors") if "attn.c_proj.weight" in name]
    for name in names:
        raw = own[name.replace("weight", "parametrizations.weight.original0")]
        scale = own[name.replace("weight", "parametrizations.weight.original1")]
        norm = torch.linalg.svdvals(load_file(last / "model.safetensors")[name])[0]
        assert float(norm) == pytest.approx(float(scale), rel=0.02), "the spectral norm is s, whatever that of W~ is"
        assert abs(float(torch.linalg.svdvals(raw)[0]) / float(scale) - 1) > 0.1


def test_every_row_has_the_extremes_of_s(original):
    rows = rows_of(original[1])
    assert all(0 < row["sigma_reparam/s_min"] < row["sigma_reparam/s_max"] for row in rows)
    assert len({row["sigma_reparam/s_max"] for row in rows}) > 20
    assert rows[-1]["loss/nll"] < rows[0]["loss/nll"] - 0.3
    assert events_of(original[1]) == []


def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(original, tmp_path):
    config, run = original
    cut = tmp_path / "run"
    shutil.copytree(run, cut)
    for checkpoint in list_checkpoints(cut)[1:]:
        shutil.rmtree(checkpoint)
    (cut / "status.json").write_text('{"status": "failed", "step": 12, "reason": ""}')
    AcceleratorState._reset_state(reset_partial_state=True)
    assert exit_status(lambda: train(config.model_copy(update={"output_dir": str(tmp_path)}))) == 0
    assert rows_of(cut) == rows_of(run)
    assert_same_checkpoint(list_checkpoints(cut)[-1], list_checkpoints(run)[-1])


def test_a_branch_without_a_change_is_the_run_it_comes_from(original, workspace, tmp_path):
    _, run = original
    own = (f"output_dir={tmp_path}", "name=branch", f"branch_from={run}@10")
    assert trained(workspace / "tiny.yaml", *own, ON)[1] == 0
    assert rows_of(tmp_path / "branch") == rows_of(run)[10:]
    assert_same_checkpoint(list_checkpoints(tmp_path / "branch")[-1], list_checkpoints(run)[-1])


def test_a_branch_is_reparametrised_as_the_run_it_comes_from(original, workspace, tmp_path, capsys):
    own = (f"output_dir={tmp_path}", "name=branch", f"branch_from={original[1]}@10")
    assert trained(workspace / "tiny.yaml", *own)[1] == 2
    assert "error: body.sigma_reparam: " in capsys.readouterr().err


@pytest.mark.parametrize("step", [5, 25])
def test_a_replay_is_the_step_to_the_bit(step, original, tmp_path):
    """From the start of the run, where the vectors are made anew, and from a checkpoint."""
    AcceleratorState._reset_state(reset_partial_state=True)
    options = ["--step", str(step), "--out", str(tmp_path / "why")]
    assert exit_status(lambda: replay.main([str(original[1]), *options])) == 0
    found = json.loads((tmp_path / "why" / "explanation.json").read_text())
    assert found["reproduced"] and found["tolerance"] == 0
    assert found["nll_before"] == pytest.approx(rows_of(original[1])[step - 1]["loss/nll"], rel=1e-5)


def test_a_counterfactual_that_changes_nothing_is_the_run(original, tmp_path):
    """optimizer.clip_norm is 1.0 already."""
    AcceleratorState._reset_state(reset_partial_state=True)
    options = ["--step", "22", "--out", str(tmp_path / "why"), "--counterfactual", "clip=1.0"]
    assert exit_status(lambda: replay.main([str(original[1]), *options])) == 0
    (found,) = json.loads((tmp_path / "why" / "counterfactuals.json").read_text())
    assert found["changed"] == found["factual"]


def test_a_line_search_begins_where_the_step_did(original, tmp_path):
    """With the vectors that the step's own forward pass has seen, not with those after it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    run, out = original[1], tmp_path / "edge"
    assert exit_status(lambda: step_command.main([str(run), "--step", "15", "--out", str(out)])) == 0
    found = json.loads((out / "step.json").read_text())
    assert found["reproduced"]
    start = found["line"][0]
    assert start["nll"] == pytest.approx(rows_of(run)[14]["loss/nll"], rel=1e-6)
    whole = next(point for point in found["line"] if point["multiple"] == 1)
    promised = found["row"]["edge/kappa"] * found["row"]["edge/promised"]
    assert whole["objective"] - start["objective"] == pytest.approx(promised, rel=2e-3)


@pytest.mark.parametrize(
    "override", ["train.eval_every=3", "train.gradient_checkpointing=true", "telemetry.edge_every=1"]
)
def test_what_only_looks_or_recomputes_changes_nothing(override, original, workspace, tmp_path):
    assert trained(workspace / "tiny.yaml", f"output_dir={tmp_path}", "name=other", ON, override)[1] == 0
    assert [r["loss/nll"] for r in rows_of(tmp_path / "other")] == [r["loss/nll"] for r in rows_of(original[1])]
    assert_same_checkpoint(list_checkpoints(tmp_path / "other")[-1], list_checkpoints(original[1])[-1])


def test_micro_batches_change_nothing_but_rounding(recipe):
    losses = []
    for rows in ("null", "2"):
        run = built(recipe, ON, f"train.micro_batch_size={rows}")
        for step in range(1, 6):
            training_step(run, step)
        losses.append([row["loss/nll"] for row in run.recorder.transfer().rows])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_under_bf16_norms_are_taken_in_float32(recipe):
    run = built(recipe, ON, "train.precision=bf16")
    layers = list(linear_layers(blocks(run.bare_model().model)))
    plain = [layer.weight for layer in layers]
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(layer.weight, weight) for layer, weight in zip(layers, plain, strict=True))
    for step in (1, 2):
        training_step(run, step)
    assert run.recorder.transfer().healthy == 2


def test_s_has_no_weight_decay_and_is_in_its_layers_group(recipe):
    run = built(recipe, ON)
    names = {id(p): name for name, p in run.bare_model().named_parameters()}
    free = {names[id(p)] for g in run.optimizer.param_groups for p in g["params"] if g["weight_decay"] == 0}
    own = {name for name in names.values() if name.endswith("original1")}
    assert len(own) == 2 * 4 and own <= free
    ordered = list(names.values())
    layers = {ordered[i] for group, members in run.telemetry.groups.items() if "layer" in group for i in members}
    assert own <= layers


def test_nothing_is_read_back_from_the_device(recipe):
    model = built(recipe, ON).bare_model()
    with HostReads() as reads:
        scales(model)
        power_step(model, torch.tensor(True))
    assert reads.found == []


def test_a_skipped_step_leaves_the_model_as_it_is(recipe):
    run = built(recipe, ON, "interventions=[{kind: skip_step, window: 8}]")
    for step in (1, 2):
        training_step(run, step)
    before = {name: value.clone() for name, value in run.bare_model().state_dict().items()}
    run.bare_model().lm_head.weight.register_hook(lambda gradient: gradient * math.nan)
    training_step(run, 3)
    assert all(torch.equal(before[name], value) for name, value in run.bare_model().state_dict().items())


@pytest.mark.parametrize("pattern", ["c_fc", "layer_01"])
def test_scaled_weights_scale_w(pattern, recipe):
    run = built(recipe, ON, f"stress=[{{kind: scale_weights, step: 1, parameters: {pattern}, factor: 3.0}}]")
    layer = run.bare_model().model.h[1].mlp.c_fc
    before = layer.weight.detach().clone()
    disturb_state(run, 1)
    torch.testing.assert_close(layer.weight.detach(), 3 * before)


def test_agc_knows_the_units_of_reparametrised_layers(recipe):
    model = built(recipe, ON).bare_model()
    remedy = AdaptiveClip(AdaptiveClip.Options())
    remedy.attach(model, None)
    assert remedy.by_column == {id(stored_weight(layer)) for layer in linear_layers(blocks(model.model))}


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["interventions=[{kind: qk_clip}]"],
            "error: interventions: qk_clip cannot scale the heads of body.sigma_reparam",
        ),
        (
            ["stress=[{kind: scale_weights, step: 2, parameters: c_fc, factor: 0.0}]"],
            "error: stress.0.factor: must be above 0 with body.sigma_reparam",
        ),
        (
            ["body={model_type: mamba, hidden_size: 16, num_hidden_layers: 1, state_size: 4}"],
            "error: body.sigma_reparam: layers.0.mixer",
        ),
    ],
)
def test_what_does_not_go_with_it_is_refused_in_a_line(overrides, told, workspace, tmp_path, capsys):
    def command():
        AcceleratorState._reset_state(reset_partial_state=True)
        return train(load_config(workspace / "tiny.yaml", [f"output_dir={tmp_path}", *overrides, ON]))

    assert exit_status(command) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and lines[0].startswith(told)


def test_the_matrices_of_an_existing_checkpoint_can_be_reparametrised(original, workspace, tmp_path):
    """Those of a run that was so already, too: its checkpoints are plain models."""
    last = list_checkpoints(original[1])[-1]
    body = f"body={{checkpoint: {last}, sigma_reparam: true}}"
    own = (
        f"output_dir={tmp_path}",
        "name=again",
        body,
        "train.steps=6",
        "data.vocab_size=null",
        f"data.tokenizer={last}",
    )
    assert trained(workspace / "tiny.yaml", *own)[1] == 0
    assert rows_of(tmp_path / "again")[0]["loss/nll"] < rows_of(original[1])[0]["loss/nll"] - 0.3

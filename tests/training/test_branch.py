"""Runs that begin at a checkpoint of another run."""

import json
import shutil
from pathlib import Path
from shlex import split

import pytest
from accelerate.state import AcceleratorState

from analysis.replay import __main__ as replay
from common.command import exit_status
from configs.load import load_config
from record.checkpoints import list_checkpoints, start_of
from record.finished import load_run
from tests.conftest import events_of, rows_of
from train_lm import train

CLIP = "interventions=[{kind: clip_norm, max_norm: 0.3}]"


@pytest.fixture
def start(recipe):
    def trained(*overrides):
        AcceleratorState._reset_state(reset_partial_state=True)
        config = load_config(recipe["path"], [*recipe["overrides"], *overrides])
        return exit_status(lambda: train(config)), Path(config.output_dir) / config.name

    return trained


@pytest.fixture(scope="module")
def original(workspace, tmp_path_factory):
    """The run that branches come from; tests that change it have a copy."""
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("original")
    config = load_config(workspace / "tiny.yaml", [f"output_dir={folder}", "name=parent", "checkpoint.keep=9"])
    assert train(config) == 0
    return folder / "parent"


@pytest.fixture
def parent(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "parent"))


def test_a_branch_without_a_change_is_the_run_it_comes_from(start, parent):
    status, run = start("name=branch", f"branch_from={parent}@10")
    assert status == 0
    assert rows_of(run) == rows_of(parent)[10:]
    ours, theirs = (list_checkpoints(each)[-1] / "model.safetensors" for each in (run, parent))
    assert ours.read_bytes() == theirs.read_bytes()
    (event,) = [e for e in events_of(run) if e["event"] == "branch"]
    assert (event["step"], event["run"]) == (10, str(parent))


def test_what_the_recipe_changes_acts_from_the_branch_on(start, parent):
    _, calm = start("name=calm", f"branch_from={parent}@10", "objective.kind=ce")
    _, hit = start(
        "name=hit", f"branch_from={parent}@10", "objective.kind=ce", "stress=[{kind: scale_lr, step: 15, factor: 10.0}]"
    )
    calm_rows, hit_rows = rows_of(calm), rows_of(hit)
    assert calm_rows[0]["loss/nll"] == rows_of(parent)[10]["loss/nll"], "the same weights see the same batch"
    assert calm_rows[0]["loss/objective"] != rows_of(parent)[10]["loss/objective"]
    assert [row["loss/nll"] for row in calm_rows[:5]] == [row["loss/nll"] for row in hit_rows[:5]]
    assert calm_rows[5]["loss/nll"] != hit_rows[5]["loss/nll"]
    assert [row["stress/acting"] for row in hit_rows] == [int(step == 15) for step in range(11, 31)]
    told = [(e["event"], e["step"]) for e in events_of(hit) if e["event"].startswith("stress")]
    assert told == [("stress_began", 15), ("stress_ended", 16)]
    assert json.loads((list_checkpoints(hit)[-1] / "config.json").read_text())["objective"]["kind"] == "ce"


def test_a_branch_outlives_its_parent(start, parent, tmp_path):
    whole = start("name=whole", f"branch_from={parent}@10", CLIP, "optimizer.clip_norm=null")[1]
    shutil.copytree(whole, tmp_path / "cut")
    cut = tmp_path / "cut"
    shutil.rmtree(parent)
    for checkpoint in list_checkpoints(cut):
        shutil.rmtree(checkpoint)
    (cut / "status.json").write_text('{"status": "failed", "step": 12, "reason": ""}')
    config = (cut / "config.yaml").read_text()
    (cut / "config.yaml").write_text(config.replace("name: whole", "name: cut"))
    status, again = start("name=cut", f"branch_from={parent}@10", CLIP, "optimizer.clip_norm=null")
    assert (status, again) == (0, cut)
    assert rows_of(again) == rows_of(whole)
    assert exit_status(lambda: replay.main([str(again), "--step", "14", "--out", str(tmp_path / "why")])) == 0
    assert json.loads((tmp_path / "why" / "explanation.json").read_text())["reproduced"]


def test_a_branch_of_a_branch_knows_the_rows_of_both(start, parent):
    _, first = start("name=first", f"branch_from={parent}@10", "checkpoint.keep=9")
    status, second = start("name=second", f"branch_from={first}@20")
    assert status == 0
    read = load_run(second, with_parent_rows=True)
    assert read.metrics.index.tolist() == list(range(1, 31))
    assert read.metrics["loss/nll"].tolist() == [row["loss/nll"] for row in rows_of(parent)]


def test_a_branch_goes_back_to_its_own_start(start, parent):
    rewinding = "interventions=[{kind: rewind, min_sigmas: 0.1}]"
    burst = "stress=[{kind: corrupt_sequences, step: 17, sequences: 8, pattern: random}]"
    status, run = start(
        "name=rewound", f"branch_from={parent}@10", burst, rewinding, "checkpoint.every=25", "train.eval_every=25"
    )
    assert status == 0
    back = [e for e in events_of(run) if e["event"] == "rewind"]
    assert [e["to_step"] for e in back] == [10]
    assert [row["step"] for row in rows_of(run)] == list(range(11, 31))
    assert start_of(run) is not None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("branch_from={parent}@11", "branch_from: {parent}@11: no checkpoint of step 11; the run has 10, 20, 30"),
        ("branch_from={parent}", "branch_from: {parent}: give a run directory and a step, as runs/calm@500"),
        ("branch_from={parent}/x@10", "branch_from: {parent}/x is no run directory: it has no config.yaml"),
        ("branch_from={parent}@30", "branch_from: step 30 is not before the last one, train.steps=30"),
        (
            "branch_from={parent}@10 'stress=[{{kind: scale_lr, step: 9, steps: 2, factor: 2.0}}]'",
            "stress.0.step: 9 is over at step 10, where the branch begins",
        ),
    ],
)
def test_what_cannot_be_branched_from_is_told(start, parent, capsys, change, told):
    status, run = start("name=branch", *split(change.format(parent=parent)))
    assert status == 2
    assert f"error: {told.format(parent=parent)}" in capsys.readouterr().err
    assert not (run / "branch_point").exists()


def test_a_branch_with_another_body_is_refused(start, parent, capsys):
    status, _ = start("name=branch", f"branch_from={parent}@10", "body.n_layer=1", "data.sequence_length=16")
    assert status == 2
    told = capsys.readouterr().err
    assert "error: body.n_layer: " in told and "error: data.sequence_length: " in told


def test_a_damaged_checkpoint_is_no_start(start, parent, capsys):
    with (list_checkpoints(parent)[0] / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    assert start("name=branch", f"branch_from={parent}@10")[0] == 2
    assert "model.safetensors is not what was written" in capsys.readouterr().err

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
from record.checkpoints import intervention_tensors, list_checkpoints, start_of
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


CLOCKS = "interventions=[{kind: adagc, warmup: 4}, {kind: spam, every: 8, pause: 2, warmup: 3, threshold: 20.0}]"


@pytest.fixture
def clocked(start, parent):
    """A branch with remedies that count steps from where they begin."""
    return start("name=clocked", f"branch_from={parent}@10", CLOCKS, "checkpoint.keep=9")[1]


def test_a_remedy_that_a_branch_adds_counts_from_the_branch_point(start, parent, clocked):
    plain = start("name=plain", f"branch_from={parent}@10")[1]
    ratio = {a["step"]: a["lr"] / b["lr"] for a, b in zip(rows_of(clocked), rows_of(plain), strict=True)}
    assert [step for step, r in ratio.items() if r == pytest.approx(0.01)] == [18, 26], "every 8th step of its own"
    assert [step for step, r in ratio.items() if r < 0.999] == [18, 19, 20, 26, 27, 28]
    clipped = {row["step"]: row["intervention/adagc/clipped_share"] for row in rows_of(clocked)}
    assert all(share in (0, 1) for step, share in clipped.items() if step <= 14), "one limit for all"
    assert any(0 < share < 1 for step, share in clipped.items() if step > 14), "a limit for each"


def test_its_clock_is_in_the_checkpoint(start, parent, clocked, tmp_path):
    """To the bit: resumed, replayed, and in a branch of the branch; a run that is no branch has no such entry."""
    whole = rows_of(clocked)
    again = start("name=again", f"branch_from={clocked}@20", CLOCKS)[1]
    assert rows_of(again) == whole[10:]
    shutil.rmtree(list_checkpoints(clocked)[-1])
    (clocked / "status.json").unlink()
    assert start("name=clocked", f"branch_from={parent}@10", CLOCKS, "checkpoint.keep=9")[0] == 0
    assert [e["event"] for e in events_of(clocked)].count("resume") == 1
    assert rows_of(clocked) == whole
    assert exit_status(lambda: replay.main([str(clocked), "--step", "27", "--out", str(tmp_path / "why")])) == 0
    assert json.loads((tmp_path / "why" / "explanation.json").read_text())["reproduced"]
    unbranched = start("name=unbranched", CLOCKS)[1]
    kept = [{key for key in intervention_tensors(list_checkpoints(run)[-1]) if "began" in key}
            for run in (clocked, unbranched)]  # fmt: skip
    assert kept == [{"adagc._began", "spam._began"}, set()], "clip_norm is the other run's"


def test_a_branch_says_what_a_remedy_cannot_do_in_it(start, parent, capfd):
    late = "{kind: skip_step, window: 42}, {kind: zclip, warmup: 20}, {kind: rewarm, at: [9, 10, 31], steps: 2}"
    intime = "{kind: skip_step, window: 40}, {kind: zclip, warmup: 19}, {kind: spam, every: 20}"
    start("name=told", f"branch_from={parent}@10", f"interventions=[{late}, {intime}, {{kind: centre_embeddings}}]")
    told = [line for line in capfd.readouterr().err.splitlines() if "note: interventions" in line]
    centre = "note: interventions: centre_embeddings"
    assert [line[line.index("note: ") :] for line in told] == [
        "note: interventions: skip_step skips nothing that is finite before step 31, and the run ends at step 30",
        "note: interventions: zclip compares no norm with earlier ones before step 31, and the run ends at step 30",
        "note: interventions: rewarm was to act from step 9 on, which is over at step 10, where it begins",
        "note: interventions: rewarm was to act from step 31 on, and the run ends at step 30",
        f"{centre} changes the predictions of this head; P stays the same for a linear one",
        f"{centre} moves the input embeddings too, which are tied; head.tied=false keeps them",
        f"{centre} takes the whole mean out of a trained embedding at step 11, which moves all logits at once",
    ]


def notes(capfd):
    err = capfd.readouterr().err.splitlines()
    return [line for line in err if line.startswith("note: branch_from")]


def reproduced(run, step, out):
    assert exit_status(lambda: replay.main([str(run), "--step", str(step), "--out", str(out)])) == 0
    return json.loads((out / "explanation.json").read_text())["reproduced"]


def test_a_branch_in_another_precision(start, parent, tmp_path, capfd):
    """The same weights and batches, rounded otherwise; and back again."""
    status, half = start("name=half", f"branch_from={parent}@10", "train.precision=bf16", "checkpoint.keep=9")
    assert status == 0
    assert notes(capfd) == [f"note: branch_from: other than in {parent}: train.precision"]
    (event,) = [e for e in events_of(half) if e["event"] == "branch"]
    assert event["changed"] == ["train.precision"]
    usual, rounded = rows_of(parent)[10], rows_of(half)[0]
    assert rounded["data/batch"] == usual["data/batch"]
    assert rounded["loss/nll"] != usual["loss/nll"]
    assert rounded["loss/nll"] == pytest.approx(usual["loss/nll"], rel=5e-3)
    assert reproduced(half, 14, tmp_path / "why")
    assert start("name=back", f"branch_from={half}@20")[0] == 0
    assert notes(capfd) == [f"note: branch_from: other than in {half}: train.precision"]


def test_a_branch_with_another_seed_draws_other_batches(start, parent, tmp_path, capfd):
    status, other = start("name=other", f"branch_from={parent}@10", "seed=7")
    assert status == 0
    told = f"other than in {parent}: seed; with another seed the batches come in another order"
    assert notes(capfd) == [f"note: branch_from: {told}"]
    assert rows_of(other)[0]["loss/nll"] != rows_of(parent)[10]["loss/nll"]
    assert rows_of(other)[0]["param_norm/embedding"] == rows_of(parent)[10]["param_norm/embedding"], "the same weights"
    assert reproduced(other, 14, tmp_path / "why")


BURST = "stress=[{{kind: corrupt_sequences, step: {}, sequences: 8, pattern: random}}]"


def test_a_branch_of_a_run_that_has_rewound(start, tmp_path, capfd):
    """The batches that were left out stay so, and a fault that goes by batches is over where they have been drawn."""
    rewinding = "interventions=[{kind: rewind, min_sigmas: 1}]"
    status, parent = start("name=rewound", "train.steps=60", BURST.format(45), rewinding, "checkpoint.keep=9")
    assert status == 0
    (back,) = [e for e in events_of(parent) if e["event"] == "rewind"]
    assert back["to_step"] == 40
    left_out = back["skipped"][0][1] - back["skipped"][0][0] + 1
    for step in (40, 50):
        status, branch = start(f"name=from{step}", "train.steps=60", f"branch_from={parent}@{step}")
        assert status == 0
        assert rows_without_stress(branch) == rows_without_stress(parent)[step:]
        assert rows_of(branch)[-1]["data/batch"] == 60 + left_out
    assert reproduced(branch, 55, tmp_path / "why")
    capfd.readouterr()
    assert start("name=late", "train.steps=60", f"branch_from={parent}@50", BURST.format(50 + left_out))[0] == 2
    told = f"stress.0.step: {50 + left_out} is over at step 50 (batch {50 + left_out}), where the branch begins"
    assert f"error: {told}" in capfd.readouterr().err
    hit = start("name=hit", "train.steps=60", f"branch_from={parent}@50", BURST.format(51 + left_out))[1]
    assert [row["step"] for row in rows_of(hit) if row["stress/acting"]] == [51]


def rows_without_stress(run):
    return [{k: v for k, v in row.items() if k != "stress/acting"} for row in rows_of(run)]


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

"""What lies among a run's checkpoints and is none of them, or is damaged: passed over or refused, in one line at most."""

from __future__ import annotations

import os
import shutil

import pytest
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from analysis.compare.arms import find_arms, load_member
from analysis.probes.over_training import points_of
from analysis.replay import __main__ as replay
from common.command import EXIT_BAD_INPUT, EXIT_PREEMPTED, exit_status
from common.errors import InputError
from record.checkpoints import list_checkpoints, step_of
from record.integrity import write_manifest
from tests.conftest import events_of

from .conftest import assert_as_unbroken
from .test_files import flip_a_bit, truncate

STEPS = [10, 20, 25]
"""Of the stopped run's checkpoints: two that were due, and that of the stop."""


@pytest.fixture(scope="module")
def stopped(start, tmp_path_factory):
    """A run that was stopped after step 25."""
    ended = start(tmp_path_factory.mktemp("stopped") / "run", "checkpoint.keep=3", step=25, signals=["SIGTERM"])
    assert ended.status == EXIT_PREEMPTED, ended.output
    assert steps_of(ended.directory) == STEPS
    return ended.directory


@pytest.fixture
def copy(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run", symlinks=True)


def steps_of(run):
    return [step_of(path) for path in list_checkpoints(run)]


def at(run, step):
    return run / "checkpoints" / f"step_{step:08d}"


def moved_away(checkpoint):
    """A link is where the checkpoint was, as somebody leaves it whose disk was full."""
    away = checkpoint.parents[2] / f"moved_{checkpoint.name}"
    shutil.move(checkpoint, away)
    checkpoint.symlink_to(away)


def without_weights(checkpoint):
    """Its state alone, as a copy that was broken off leaves it."""
    for path in checkpoint.iterdir():
        if path.name != "trainer_state.json":
            path.unlink()


def under_a_longer_name(checkpoint):
    checkpoint.rename(checkpoint.with_name(checkpoint.name.replace("step_", "step_0")))


FOREIGN = [moved_away, without_weights, under_a_longer_name]


def add_what_is_no_checkpoint(run):
    """Everything that the steps of a stopped run could be taken for; returns what must stay as it is."""
    moved_away(at(run, 10))
    folder = run / "checkpoints"
    shutil.copytree(at(run, 20), folder / "best")
    shutil.copytree(at(run, 20), folder / "step_000000021")
    (folder / "step_00000022").symlink_to("step_00000020")
    (folder / "step_00000023").symlink_to("nowhere")
    (folder / "step_00000024").symlink_to("step_00000024")
    (folder / "step_00000026").mkdir()
    (folder / "step_00000026" / "trainer_state.json").write_text("{}")
    (folder / "step_00000027").write_text("a file")
    return sorted({p.name for p in folder.iterdir()} - {at(run, step).name for step in (20, 25)})


def told_by_replay(run, step, out, capsys):
    """Exit status of a replay and the lines of its errors."""
    AcceleratorState._reset_state(reset_partial_state=True)
    status = exit_status(lambda: replay.main([str(run), "--step", str(step), "--out", str(out)]))
    return status, [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("make", FOREIGN, ids=lambda make: make.__name__)
def test_what_is_no_checkpoint_is_none(make, copy):
    for step in STEPS:
        make(at(copy, step))
        assert steps_of(copy) == [s for s in STEPS if s > step]


@pytest.mark.faults
def test_a_checkpoint_whose_weights_are_gone_is_a_damaged_one_and_said_aloud(copy, start, unbroken):
    """Its manifest lists them: it was a checkpoint."""
    (at(copy, 25) / "model.safetensors").unlink()
    assert steps_of(copy) == STEPS
    ended = start(copy, "checkpoint.keep=3")
    assert ended.status == 0, ended.output
    assert "step_00000025 cannot be used: model.safetensors is missing" in ended.output
    assert_as_unbroken(copy, unbroken.directory)


def test_a_run_goes_on_among_what_is_no_checkpoint_and_leaves_it_as_it_is(copy, start, unbroken):
    foreign = add_what_is_no_checkpoint(copy)
    ended = start(copy, "checkpoint.keep=1")
    assert ended.status == 0, ended.output
    assert "going on from step 25" in ended.output
    assert_as_unbroken(copy, unbroken.directory)
    assert set(foreign) <= {p.name for p in (copy / "checkpoints").iterdir()}


@pytest.mark.faults
@pytest.mark.parametrize("make", FOREIGN, ids=lambda make: make.__name__)
def test_without_its_newest_checkpoint_a_run_goes_on_from_the_one_before(make, copy, start, unbroken):
    make(at(copy, 25))
    ended = start(copy, "checkpoint.keep=3")
    assert ended.status == 0, ended.output
    assert "going on from step 20" in ended.output
    assert_as_unbroken(copy, unbroken.directory)


@pytest.mark.faults
def test_a_replay_and_a_study_pass_over_what_is_no_checkpoint(copy, tmp_path, capsys):
    for name in ("best", "step_000000021"):
        shutil.copytree(at(copy, 20), copy / "checkpoints" / name)
    (copy / "checkpoints" / "step_00000023").symlink_to("nowhere")
    without_weights(at(copy, 20))
    assert told_by_replay(copy, 24, tmp_path / "out", capsys) == (0, [])
    assert (tmp_path / "out" / "page.html").is_file()
    shutil.rmtree(copy / "checkpoints" / "step_000000021")  # a study reads what any number is the name of
    assert [point.step for point in points_of(find_arms([str(copy)]))] == [0, 10, 25]


# ----------------------------------------------------------------------------- checkpoints, but not as they were written


@pytest.mark.faults
def test_a_checkpoint_under_the_name_of_another_step_is_rejected_by_name(copy, start, unbroken):
    at(copy, 25).rename(at(copy, 24))
    ended = start(copy, "checkpoint.keep=3")
    assert ended.status == 0, ended.output
    assert "step_00000024 cannot be used: it was written after step 25" in ended.output
    assert [e["checkpoint"] for e in events_of(copy) if e["event"] == "checkpoint_rejected"] == ["step_00000024"]
    assert_as_unbroken(copy, unbroken.directory)


def test_an_old_checkpoint_that_is_damaged_does_not_end_the_run_that_tidies_up(copy, start, unbroken):
    flip_a_bit(at(copy, 20) / "trainer_state.json")
    truncate(at(copy, 10) / "trainer_state.json")
    ended = start(copy, "checkpoint.keep=1")
    assert ended.status == 0, ended.output
    assert_as_unbroken(copy, unbroken.directory)


@pytest.mark.faults
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "trainer_state.json", "manifest.json"])
@pytest.mark.parametrize("harm", [truncate, flip_a_bit, os.remove], ids=lambda harm: harm.__name__)
def test_a_replay_from_a_damaged_checkpoint_is_refused_in_one_line(harm, file, copy, tmp_path, capsys):
    """Without trainer_state.json it is none, and the one before it serves."""
    harm(at(copy, 20) / file)
    status, errors = told_by_replay(copy, 24, tmp_path / "out", capsys)
    if file == "trainer_state.json" and harm is os.remove:
        assert (status, errors) == (0, [])
    else:
        assert status == EXIT_BAD_INPUT
        assert len(errors) == 1
        assert "step_00000020" in errors[0]
        assert file in errors[0]


# ----------------------------------------------------------------------- whole checkpoints whose weights have other names


def named_as_torch_compile_names_them(checkpoint):
    """As a launch with a dynamo backend once wrote them; the list of checksums fits."""
    weights = load_file(checkpoint / "model.safetensors")
    renamed = {f"_orig_mod.{name}": weight for name, weight in weights.items()}
    save_file(renamed, checkpoint / "model.safetensors", metadata={"format": "pt"})
    write_manifest(checkpoint)


def test_weights_under_other_names_are_refused_wherever_they_are_loaded(copy, start, tmp_path, capsys):
    """transformers would train, replay or probe random weights instead."""
    for step in STEPS:
        named_as_torch_compile_names_them(at(copy, step))
    missing = "missing weights: lm_head.weight, model.h.0.attn.c_attn.bias, "
    ended = start(copy, "checkpoint.keep=3")
    assert ended.status == EXIT_BAD_INPUT, ended.output
    assert f"{at(copy, 25)} cannot be used: {missing}" in ended.output
    status, (error,) = told_by_replay(copy, 24, tmp_path / "out", capsys)
    assert status == EXIT_BAD_INPUT
    assert f"{at(copy, 20)} cannot be used: {missing}" in error
    assert not (tmp_path / "out").exists()
    (arm,) = find_arms([str(at(copy, 25))])
    with pytest.raises(InputError, match=f"cannot be loaded as a causal language model: {missing}"):
        load_member(arm.members[0])
    ended = start(tmp_path / "on_top", "body=null", f"body={{checkpoint: {at(copy, 25)}}}", "resume=never")
    assert ended.status == EXIT_BAD_INPUT, ended.output
    assert f"body.checkpoint: {at(copy, 25)}: missing weights: model.h.0.attn.c_attn.bias, " in ended.output

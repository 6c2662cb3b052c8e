"""Which models of a suite are measured."""

import shutil

import pytest

from analysis.stability.chosen import arms_at
from common.errors import InputError
from record.suite import read_plan

from .made import write_suite


def with_checkpoints(suite, kept=lambda name: True):
    """Gives each run of a suite two complete checkpoints, as far as their files' names say."""
    for run in read_plan(suite).runs:
        if kept(run.name):
            for step in (30, 60):
                checkpoint = suite / run.name / "checkpoints" / f"step_{step:08}"
                checkpoint.mkdir(parents=True)
                (checkpoint / "config.json").write_text("{}")
                (checkpoint / "model.safetensors").write_text("")
    return suite


def test_a_suite_stands_for_each_arms_best_rate(tmp_path):
    """The baseline ends lowest at 0.01, the other arm at 0.03."""
    levels = {"base": {0.01: 4.0, 0.03: 4.5}, "other": {0.01: 4.4, 0.03: 4.1}}
    arms = arms_at([str(with_checkpoints(write_suite(tmp_path / "suite", levels, [0, 1])))])
    assert [arm.label for arm in arms] == ["base", "other"]
    assert [m.label for arm in arms for m in arm.members] == [
        "base_lr0.01_seed0", "base_lr0.01_seed1", "other_lr0.03_seed0", "other_lr0.03_seed1"
    ]  # fmt: skip
    assert {m.checkpoint.name for arm in arms for m in arm.members} == {"step_00000060"}
    assert arms[1].seeds == (0, 1)


def test_runs_without_a_checkpoint_are_left_out_and_a_suite_of_them_is_refused(tmp_path, capsys):
    suite = write_suite(tmp_path / "suite", {"base": {0.01: 4.0}, "other": {0.01: 4.1}}, [0, 1])
    with pytest.raises(InputError, match=r"none of its calm runs has a checkpoint; checkpoint\.keep"):
        arms_at([str(suite)])
    with_checkpoints(suite, lambda name: name == "base_lr0.01_seed1")
    shutil.rmtree(suite / "base_lr0.01_seed1" / "checkpoints" / "step_00000060")
    (arm,) = arms_at([str(suite)])
    assert (arm.label, arm.seeds) == ("base", (1,))
    assert (
        "base_lr0.01_seed1 is measured at step 30 of 60, and compared with others as it is" in capsys.readouterr().err
    )


def test_two_suites_and_their_runs_keep_their_names_apart(tmp_path):
    paths = [str(with_checkpoints(write_suite(tmp_path / each, {"base": {0.01: 4.0}}, [0]))) for each in "ab"]
    arms = arms_at([*paths, f"{paths[0]}/base_lr0.01_seed0"])
    assert len({arm.label for arm in arms}) == len({m.label for arm in arms for m in arm.members}) == 3

"""Runs in forks of a process that has imported everything: the same to the bit, extended, branched, and watched."""

import json
import re
import shutil
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from configs.load import load_config
from run_suite import main
from suite.check import check
from suite.expand import expand
from suite.file import load_suite
from suite.warm import gpu_of, may_compile
from train_lm import train

from ..conftest import ROOT, called, python, rows_of

SUITE = """
recipe: {workspace}/tiny.yaml
out: out
seeds: [0, 1]
control: [10, 11]
arms:
  metric: [train.steps=20]
  linear: [train.steps=20, head.kind=linear, objective.kind=ce]
scenarios:
  calm: {{}}
  jump:
    overrides: ['stress=[{{kind: scale_lr, step: 15, steps: 2, factor: 30.0}}]']
    branch_from: calm@10
    arms: [metric]
"""


@pytest.fixture(scope="module")
def suite(workspace, tmp_path_factory):
    """The folder of a suite that has been run, and what it printed."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "suite.yaml").write_text(SUITE.format(workspace=workspace))
    result = called(main, "suite.yaml", "--jobs", "2", cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder, result.stdout


def test_a_run_is_the_same_to_the_bit_as_alone(workspace, suite, tmp_path):
    """In a process that is no fork. Also a branch, by the command in its log."""
    folder, _ = suite
    log = (folder / "out" / "logs" / "metric_jump_seed1.log").read_text()
    assert log.startswith(f"$ python train_lm.py --config {workspace}/tiny.yaml 'output_dir=\"out\"' ")
    alone = ["train.steps=20", "seed=1", f"output_dir={tmp_path}", "name=alone"]
    result = python(ROOT / "train_lm.py", "--config", workspace / "tiny.yaml", *alone)
    assert result.returncode == 0, result.stderr
    assert rows_of(tmp_path / "alone") == rows_of(folder / "out" / "metric_calm_seed1")
    stress = "stress=[{kind: scale_lr, step: 15, steps: 2, factor: 30.0}]"
    branch = [*alone[:3], "name=branch", f"branch_from={tmp_path / 'alone'}@10", stress]
    AcceleratorState._reset_state(reset_partial_state=True)
    assert train(load_config(workspace / "tiny.yaml", branch)) == 0
    assert rows_of(tmp_path / "branch") == rows_of(folder / "out" / "metric_jump_seed1")


def test_the_plan_and_the_table_name_every_run(suite):
    folder, output = suite
    plan = json.loads((folder / "out" / "suite.json").read_text())
    names = [run["name"] for run in plan["runs"]]
    assert (plan["baseline"], plan["control"]) == ("metric", "metric_again")
    assert names[:3] == ["metric_calm_seed0", "linear_calm_seed0", "metric_again_calm_seed10"]
    assert len(names) == 10
    ends = {name: rows_of(folder / "out" / name)[-1]["validation/nll"] for name in names}
    difference = ends["linear_calm_seed1"] - ends["metric_calm_seed1"]
    table = output[output.rindex("\nrun  ") :]
    assert re.search(rf"\nlinear_calm_seed1 +finished +20 +[\d.]+ +{re.escape(format(difference, '+.4f'))}\n", table)
    assert re.search(r"\nmetric_again_jump_seed11 +finished +20 +[\d.]+\n", table)  # no partner of its seed
    line = r"^(\w+): finished: validation NLL [\d.]+ nats/token; out/\w+; (\d+) of 10 runs done, \d+ runs an hour, [^,]+ left$"
    ended = re.findall(line, output, re.MULTILINE)
    assert sorted(name for name, _ in ended) == sorted(names)
    assert [int(number) for _, number in ended] == [*range(1, 11)]
    assert "started" not in output
    assert "checked" not in output  # only on a terminal


def test_a_suite_is_extended_by_what_is_new(workspace, suite):
    """A seed more for some arms, and an arm more: nothing is run twice. A watcher sees them all."""
    folder, _ = suite
    lines = SUITE.format(workspace=workspace).replace("[0, 1]", "[0, 1, 2]").replace("[10, 11]", "[10, 11, 12]")
    slow = "  slow: [train.steps=20, optimizer.lr=1e-4]\narm_seeds: {linear: [0, 1]}\n"
    lines = lines.replace("scenarios:", f"{slow}scenarios:")
    (folder / "more.yaml").write_text(lines)
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").glob("*/metrics.jsonl")}
    result = called(main, "more.yaml", "--jobs", "2", cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "10 of 17 runs have ended already\n" in result.stdout
    assert result.stdout.count(": finished: validation NLL") == 7
    assert {path: path.stat().st_mtime_ns for path in before} == before
    watched = called(main, "more.yaml", "--watch", cwd=folder)
    assert watched.returncode == 0, watched.stderr
    assert watched.stdout.endswith("\n17 finished\n")
    assert "metric_calm_seed2 " in watched.stdout


def test_a_changed_arm_is_refused_before_anything_starts(workspace, suite):
    folder, _ = suite
    changed = SUITE.format(workspace=workspace).replace("head.kind=linear,", "head.kind=linear, optimizer.lr=1e-5,")
    (folder / "changed.yaml").write_text(changed)
    result = called(main, "changed.yaml", cwd=folder)
    assert result.returncode == 2
    assert "error: linear_calm_seed0: optimizer.lr: the run in out/linear_calm_seed0 was begun with" in result.stderr


@pytest.fixture
def moved(suite, tmp_path):
    """A copy of the suite's directory in another place, and what the check says of it."""
    folder, _ = suite
    out = tmp_path / "moved"
    shutil.copytree(folder / "out", out)
    asked = load_suite(folder / "suite.yaml")
    runs = expand(asked, out)
    overrides = {run.name: run.overrides for run in runs}
    parents = {run.name: (run.parent, run.parent_step) for run in runs if run.parent is not None}

    def checking():
        return check(Path(asked.recipe), overrides, parents, out)

    return out, overrides, checking


def test_a_suite_that_was_moved_is_done(moved):
    """Another folder, and `out` spelled differently: its branches are still those of the runs beside them."""
    out, _, checking = moved
    for name in ("branches", "without checkpoints"):
        found = checking()
        assert found["problems"] == {}, name
        assert [each["ended"] for each in found["prospects"].values()] == ["finished"] * 10
        for checkpoints in out.glob("*/checkpoints"):  # deleted to save space
            shutil.rmtree(checkpoints)


def test_a_branch_of_another_run_is_another_branch(workspace, moved):
    out, overrides, _ = moved
    name = "metric_jump_seed0"
    own = [each.replace("metric_calm_seed0@10", "metric_calm_seed1@10") for each in overrides[name]]
    (problem,) = check(workspace / "tiny.yaml", {name: own}, {}, out)["problems"]
    assert problem.startswith(f"branch_from: the run in {out / name} was begun with 'out/metric_calm_seed0@10', not ")


def test_a_branch_of_a_run_that_was_trained_anew_is_refused(workspace, moved):
    """From when the run is deleted until the branch is."""
    out, overrides, checking = moved
    parent, branch = "metric_calm_seed0", "metric_jump_seed0"
    told = (
        f"branch_from: {parent} is not what they began at any more (deleted, or trained anew); delete their folders in {out}/ "
        "too, and they are run again"
    )
    shutil.rmtree(out / parent)
    assert checking()["problems"] == {told: [branch]}
    AcceleratorState._reset_state(reset_partial_state=True)
    assert train(load_config(workspace / "tiny.yaml", [*overrides[parent], "train.micro_batch_size=4"])) == 0
    assert checking()["problems"] == {told: [branch]}
    shutil.rmtree(out / branch)
    found = checking()
    assert found["problems"] == {}
    assert [name for name, each in found["prospects"].items() if each["ended"] is None] == [branch]


def test_a_branch_without_its_checkpoint_is_refused_before_anything_starts(workspace, tmp_path):
    lines = SUITE.format(workspace=workspace)
    for step, told in (("5", "is no multiple of checkpoint.every=10"), ("20", "is not before the last")):
        (tmp_path / "suite.yaml").write_text(lines.replace("calm@10", f"calm@{step}"))
        result = called(main, "suite.yaml", "--check", cwd=tmp_path)
        assert result.returncode == 2
        named = "metric_jump_seed0, metric_again_jump_seed10, metric_jump_seed1, metric_again_jump_seed11"
        assert f"error: {named}: branch_from: step {step} {told}" in result.stderr
    (tmp_path / "suite.yaml").write_text(lines.replace("step: 15", "step: 5"))
    result = called(main, "suite.yaml", "--check", cwd=tmp_path)
    assert "stress.0.step: 5 is over at step 10, where the branch begins" in result.stderr
    long = lines.replace("train.steps=20", "train.steps=60").replace("step: 15", "step: 55")
    (tmp_path / "suite.yaml").write_text(long)
    result = called(main, "suite.yaml", "--check", cwd=tmp_path)
    assert "the checkpoint of step 10 is deleted before the run ends; set checkpoint.keep=6" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_branch_of_a_branch_begins_where_that_one_has_steps(workspace, tmp_path):
    names = ("calm", "later", "last")
    overrides = {name: [f"output_dir={tmp_path}", f"name={name}", "checkpoint.keep=9"] for name in names}
    told = "branch_from: step 10 is before the one at which the run it begins at is a branch itself, 20"
    for step, problems in ((10, {told: ["last"]}), (20, {})):
        parents = {"later": ("calm", 20), "last": ("later", step)}
        assert check(workspace / "tiny.yaml", overrides, parents, tmp_path)["problems"] == problems


def test_a_branch_of_a_run_that_failed_is_not_started(workspace, tmp_path):
    """It is said, and the other runs go on."""
    (tmp_path / "broken.py").write_text(
        "from model import Objective, register_objective\n\n@register_objective('broken')\nclass Broken(Objective):\n"
        "    def loss(self, t):\n        raise RuntimeError('no')\n"
    )
    (tmp_path / "suite.yaml").write_text(
        f"recipe: {workspace}/tiny.yaml\nout: out\n"
        f"arms:\n  bad: ['plugins=[{tmp_path}/broken.py]', objective.kind=broken, train.steps=20]\n  good: [train.steps=20]\n"
        "scenarios:\n  calm: {}\n  later: {branch_from: calm@10}\n  more: {branch_from: later@20}\n"
    )
    result = called(main, "suite.yaml", cwd=tmp_path)
    assert result.returncode == 2  # `more` begins at the last step of `later`
    (tmp_path / "suite.yaml").write_text(
        (tmp_path / "suite.yaml").read_text().replace("  more: {branch_from: later@20}\n", "")
    )
    result = called(main, "suite.yaml", cwd=tmp_path)
    assert result.returncode == 1, result.stdout
    table = result.stdout[result.stdout.rindex("\nrun  ") :]
    assert re.search(r"\nbad_calm +failed with status 1\b", table)
    assert re.search(r"\nbad_later +not started: bad_calm has no step 10\b", table)
    assert re.search(r"\ngood_later +finished +20 ", table)


AT_ONCE = """
import sys
import time
from pathlib import Path

from suite.warm import WarmChild, fork_server

recipe, out = sys.argv[1:]
child = WarmChild(fork_server(1), ["--config", recipe, f"output_dir={out}", "name=run"], Path(out, "run.log"), 0)
child.stop()
while not child.ended():
    time.sleep(0.01)
print(child.status)
"""


def test_a_run_that_is_stopped_as_soon_as_it_is_started_ends(workspace, tmp_path):
    """Also while it ignores signals as the process does whose fork it is."""
    result = python("-c", AT_ONCE, workspace / "tiny.yaml", tmp_path)
    assert result.stdout == "75\n", result.stdout + result.stderr
    assert not (tmp_path / "run").exists()


def test_a_branch_of_a_run_that_diverged_before_it_is_a_result_too(workspace, tmp_path):
    """The suite is done: the same command would end the same. What an earlier plan had in the directory is named."""
    wild = "[train.steps=20, optimizer.lr=1e18, optimizer.clip_norm=null]"
    lines = f"recipe: {workspace}/tiny.yaml\nout: out\narms: {{wild: {wild}}}\n"
    (tmp_path / "suite.yaml").write_text(f"{lines}scenarios:\n  calm: {{}}\n  later: {{branch_from: calm@10}}\n")
    result = called(main, "suite.yaml", cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    table = result.stdout[result.stdout.rindex("\nrun  ") :]
    assert re.search(r"\nwild_calm +diverged\b", table)
    assert re.search(r"\nwild_calm: diverged: [^|]+ is not finite at step \d+; [^|]+; 1 of 2 runs done", result.stdout)
    assert re.search(r"\nwild_later +not started: wild_calm has no step 10\b", table)
    (tmp_path / "suite.yaml").write_text(f"{lines}scenarios: {{calm: {{}}}}\n")
    result = called(main, "suite.yaml", cwd=tmp_path)
    assert "out: 1 runs of the suite that was run here before are no longer in it: wild_later" in result.stderr


@pytest.mark.parametrize(
    ("place", "count", "visible", "gpu"),
    [
        (0, 0, None, None),
        (3, 1, "2", None),
        (1, 4, None, "1"),
        (5, 4, None, "1"),
        (1, 2, "6,3", "3"),
        (2, 2, "GPU-a,GPU-b", "GPU-a"),
    ],
)
def test_runs_at_a_time_have_a_gpu_each(place, count, visible, gpu):
    assert gpu_of(place, count, visible) == gpu


@pytest.mark.parametrize(
    ("recipe", "override", "compiles"),
    [
        ("train: {compile: true}", "", True),
        ("train:\n  compile: yes", "", True),
        ('{"train": {"compile": true}}', "", True),
        ("train: {steps: 3}", "train.compile=true", True),
        ("train: {compile: false}", "train.steps=3", False),
        ("# compile: truely", "", False),
        (None, "", False),
    ],
)
def test_the_compiler_is_loaded_beforehand_only_where_a_run_seems_to_compile(recipe, override, compiles, tmp_path):
    path = tmp_path / "recipe.yaml"
    if recipe is not None:
        path.write_bytes(b"# caf\xe9\n" + recipe.encode())  # not UTF-8: the check says so, not this
    assert may_compile(path, [override]) == compiles

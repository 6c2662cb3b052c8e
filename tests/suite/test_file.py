"""From a suite file to its runs: names, order, overrides, the control, branches, and mistakes."""

import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from common.errors import InputError
from record.suite import PlannedRun, SuitePlan, read_plan, write_plan
from run_suite import main
from suite.analyses import read_analysis
from suite.check import check
from suite.expand import expand, plan
from suite.file import load_suite

from ..conftest import ROOT


@pytest.fixture
def read(tmp_path):
    """A suite from the lines of its file that follow recipe and out."""

    def reading(lines):
        (tmp_path / "suite.yaml").write_text(f"recipe: x.yaml\nout: out\n{lines}\n")
        return load_suite(tmp_path / "suite.yaml")

    return reading


def own(run):
    """A run's overrides without those that every run has."""
    return [each for each in run.overrides if not each.startswith(("output_dir=", "name="))]


def test_a_suite_of_arms_alone(read):
    runs = expand(read("arms: {a: [], b: [train.steps=6]}"), Path("out"))
    assert [(run.name, own(run)) for run in runs] == [("a", []), ("b", ["train.steps=6"])]
    assert runs[1].overrides[:2] == ('output_dir="out"', 'name="b"')
    assert runs[1].planned == PlannedRun("b", "b", None, None, None)


def test_all_runs_of_a_seed_come_before_those_of_the_next(read):
    suite = read("seeds: [3, 5]\ncontrol: []\narms: {a: [], b: [train.steps=6]}")
    assert [(run.name, own(run)) for run in expand(suite, Path("out"))] == [
        ("a_seed3", ["seed=3"]),
        ("b_seed3", ["train.steps=6", "seed=3"]),
        ("a_seed5", ["seed=5"]),
        ("b_seed5", ["train.steps=6", "seed=5"]),
    ]


def test_the_baseline_is_repeated_with_other_seeds(read):
    """By default from two seeds on: from one, nothing can be compared."""
    arms = "arms: {a: [], b: [head.kind=linear]}\nbaseline: b"
    of_two = expand(read(f"seeds: [0, 1]\n{arms}"), Path("out"))
    again = [(run.name, own(run)) for run in of_two if run.planned.arm == "b_again"]
    assert again == [(f"b_again_seed{s}", ["head.kind=linear", f"seed={s}"]) for s in (1000, 1001)]
    assert plan(read(f"seeds: [0, 1]\n{arms}"), of_two).control == "b_again"
    assert len(expand(read(f"seeds: [0]\n{arms}"), Path("out"))) == 2
    chosen = read(f"seeds: [0, 1]\ncontrol: [7, 8]\n{arms}")
    assert [run.planned.seed for run in expand(chosen, Path("out")) if run.planned.arm == "b_again"] == [7, 8]
    none = read(f"seeds: [0, 1]\ncontrol: []\n{arms}")
    assert plan(none, expand(none, Path("out"))).control is None


def test_scenarios_restrict_rates_arms_and_seeds_and_branch(read):
    suite = read(
        """
seeds: [0, 1]
rates: [0.001, 0.01]
arms: {a: [], b: []}
scenarios:
  calm: {}
  jump: {overrides: [optimizer.warmup_steps=0], branch_from: calm@20, rates: [0.01], arms: [a], seeds: [1]}
"""
    )
    runs = {run.name: run for run in expand(suite, Path("here/out"))}
    calm = [
        f"{arm}_calm_lr{rate}_seed{seed}"
        for first, again in ((0, 1000), (1, 1001))
        for rate in ("0.001", "0.01")
        for arm, seed in (("a", first), ("b", first), ("a_again", again))
    ]
    assert [*runs] == [*calm, "a_jump_lr0.01_seed1", "a_again_jump_lr0.01_seed1001"]
    branch = runs["a_jump_lr0.01_seed1"]
    assert (branch.parent, branch.parent_step) == ("a_calm_lr0.01_seed1", 20)
    assert own(branch) == [
        "optimizer.warmup_steps=0",
        "optimizer.lr=0.01",
        "seed=1",
        'branch_from="here/out/a_calm_lr0.01_seed1@20"',
    ]
    assert branch.planned == PlannedRun("a_jump_lr0.01_seed1", "a", "jump", 0.01, 1)


def test_some_arms_have_fewer_seeds(read):
    """The control has as many as the baseline."""
    suite = read(
        "seeds: [0, 1, 2]\narm_seeds: {b: [0, 2], a: [0, 1]}\narms: {a: [], b: [], c: []}\nscenarios: {x: {}, y: {seeds: [1, 2]}}"
    )
    assert [run.name for run in expand(suite, Path("out"))] == [
        *("a_x_seed0", "b_x_seed0", "c_x_seed0", "a_again_x_seed1000"),
        *("a_x_seed1", "c_x_seed1", "a_again_x_seed1001", "a_y_seed1", "c_y_seed1", "a_again_y_seed1001"),
        *("b_x_seed2", "c_x_seed2", "b_y_seed2", "c_y_seed2"),
    ]


def test_some_arms_have_rates_of_their_own(read):
    """Where a scenario names none; the control has those of the baseline."""
    suite = read(
        "seeds: [0, 1]\nrates: [0.1, 0.2]\narm_rates: {b: [0.3], a: [0.2]}\narms: {a: [], b: [], c: []}\n"
        "scenarios: {x: {}, y: {rates: [0.4], seeds: [0]}}"
    )
    assert [run.name for run in expand(suite, Path("out")) if run.planned.seed in (0, 1000)] == [
        *("a_x_lr0.2_seed0", "c_x_lr0.2_seed0", "a_again_x_lr0.2_seed1000", "b_x_lr0.3_seed0", "c_x_lr0.1_seed0"),
        *("a_y_lr0.4_seed0", "b_y_lr0.4_seed0", "c_y_lr0.4_seed0", "a_again_y_lr0.4_seed1000"),
    ]


def test_more_seeds_for_some_arms_leave_the_runs_that_were(tmp_path):
    """The stress suite, begun with six seeds for all."""
    file = ROOT / "configs" / "suites" / "stress_micro.yaml"
    now = load_suite(file)
    before = now.model_copy(update={"seeds": [0, 1, 2, 3, 4, 5], "arm_seeds": {}})
    runs = {run.name: run for run in expand(now, tmp_path)}
    former = {run.name: run for run in expand(before, tmp_path)}
    assert len(former) == 786
    assert {name: runs[name] for name in former} == former
    added = [run.planned for name, run in runs.items() if name not in former]
    claimed = ["linear_ce", "linear_x4", "tfsd_article", "tfsd_half", "tfsd_2", "linear_ce_again"]
    expected = {(arm, seed + 1000 * arm.endswith("_again")): 7 + 4 for arm in claimed for seed in (6, 7)}
    assert Counter((run.arm, run.seed) for run in added) == expected | {("metric_ce_2", 6): 7, ("metric_ce_2", 7): 7}


def test_overrides_of_all_runs_come_before_those_of_arm_and_scenario(read):
    suite = read(
        "overrides: [train.steps=6, body.n_layer=1]\narms: {a: [], b: [train.steps=7]}\n"
        "scenarios: {x: {}, y: {overrides: [train.steps=8]}}"
    )
    assert [own(run) for run in expand(suite, Path("out"))] == [
        ["train.steps=6", "body.n_layer=1"],
        ["train.steps=6", "body.n_layer=1", "train.steps=7"],
        ["train.steps=6", "body.n_layer=1", "train.steps=8"],
        ["train.steps=6", "body.n_layer=1", "train.steps=7", "train.steps=8"],
    ]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("arms: {}", "arms: "),
        ("arms: {a: [], logs: []}", "arms.logs: runs, out, logs have meanings of their own"),
        ("arms: {a: []}\nbaseline: b", "baseline: b is no arm; there are a"),
        ("arms: {a: []}\nseeds: [0, 0]", "seeds: 0 is there twice"),
        ("arms: {a: []}\nrates: [0.0]", "rates.0: "),
        ("arms: {a: []}\nseeds: [0, 1]\ncontrol: [2]", "control: has 1 seeds where seeds has 2"),
        ("arms: {a: []}\nseeds: [0, 1]\ncontrol: [1, 2]", "control: must have seeds of its own"),
        (
            "arms: {a: [], b: [optimizer.lr=0.1]}\nrates: [0.2]",
            "arms.b: optimizer.lr=0.1 has no effect where the suite has rates",
        ),
        (
            "overrides: [optimizer.lr=0.1]\narms: {a: []}\nrates: [0.2]",
            "overrides: optimizer.lr=0.1 has no effect where the suite has rates",
        ),
        ("arms: {a: [seed=1]}\nseeds: [0]", "arms.a: seed=1 has no effect where the suite has seeds"),
        (
            "arms: {a: []}\nscenarios: {x: {overrides: [optimizer.lr=0.1], rates: [0.2]}}",
            "scenarios.x: optimizer.lr=0.1 has no effect where the suite has rates",
        ),
        ("arms: {a: [], a_again: []}\nseeds: [0, 1]", "arms.a_again: that is the control's name"),
        ("arms: {a: []}\nseeds: [0]\narm_seeds: {b: [0]}", "arm_seeds.b: b is no arm; there are a"),
        ("arms: {a: []}\nseeds: [0]\narm_seeds: {a: [1]}", "arm_seeds.a: 1 is none of the suite's seeds"),
        ("arms: {a: []}\nseeds: [0]\narm_seeds: {a: []}", "arm_seeds.a: "),
        ("arms: {a: []}\nrates: [1.0]\narm_rates: {b: [0.1]}", "arm_rates.b: b is no arm; there are a"),
        ("arms: {a: []}\narm_rates: {a: [0.1]}", "arm_rates.a: needs rates, those of the other arms"),
        ("arms: {a: []}\nrates: [1.0]\narm_rates: {a: []}", "arm_rates.a: "),
        ("arms: {a: []}\nseeds: [0, 1]\narm_seeds: {a: [0, 0]}", "arm_seeds.a: 0 is there twice"),
        (
            "arms: {a: []}\nseeds: [0, 1]\narm_seeds: {a_again: [0]}",
            "arm_seeds.a_again: the control follows the baseline; name a instead",
        ),
        ("arms: {a: []}\nscenarios: {x: {arms: [b]}}", "scenarios.x.arms: b is no arm; there are a"),
        ("arms: {a: []}\nseeds: [0]\nscenarios: {x: {seeds: [1]}}", "scenarios.x.seeds: 1 is none of the suite's"),
        (
            "arms: {a: []}\nscenarios: {x: {branch_from: calm@3}}",
            "scenarios.x.branch_from: calm@3: give a scenario above it",
        ),
        (
            "arms: {a: []}\nscenarios: {x: {}, y: {branch_from: x}}",
            "scenarios.y.branch_from: x: give a scenario above it",
        ),
        (
            "arms: {a: []}\nscenarios: {x: {branches_from: y}}",
            "scenarios.x.branches_from: unknown key; did you mean branch_from?",
        ),
        ("arms: {a: []}\nscenario: {}", "scenario: unknown key; did you mean scenarios?"),
        ("arms: {a: []}\noutput_dir: x", "output_dir: unknown key; did you mean out?"),
        ("arms: {a: []}\nbanana: 1", "banana: unknown key"),
        ("seeds: [0]", "arms: is required and has no default"),
        ("arms: {a: train.steps=6}", 'arms.a: input should be a valid list, but is "train.steps=6"'),
    ],
)
def test_mistakes_are_named(read, lines, told):
    with pytest.raises(InputError, match=re.escape(f"suite.yaml: {told}")):
        read(lines)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (
            "arms: {a: [], a_x: []}\nscenarios: {x: {}, x_x: {}}",
            "a_x_x: the name of two runs; rename an arm or a scenario",
        ),
        (
            "arms: {a: []}\nrates: [0.1]\nscenarios: {x: {}, y: {branch_from: x@3, rates: [0.2]}}",
            "a_y_lr0.2: begins at a run that the suite does not have, a_x_lr0.2",
        ),
    ],
)
def test_runs_that_cannot_be_are_named(read, lines, told):
    with pytest.raises(InputError, match=re.escape(told)):
        expand(read(lines), Path("out"))


def test_an_arm_and_a_scenario_set_what_the_suite_does_not(read):
    suite = read(
        "seeds: [0]\narms: {a: [optimizer.lr=0.1]}\nscenarios: {x: {}, y: {overrides: [optimizer.lr=0.2], rates: []}}"
    )
    assert [own(run) for run in expand(suite, Path("out"))] == [
        ["optimizer.lr=0.1", "seed=0"],
        ["optimizer.lr=0.1", "optimizer.lr=0.2", "seed=0"],
    ]


def test_the_plan_is_written_and_read(tmp_path):
    written = SuitePlan("a", None, (PlannedRun("a_lr1", "a", None, 1.0, None), PlannedRun("b", "b", "calm", None, 3)))
    write_plan(tmp_path, written)
    assert read_plan(tmp_path) == written
    assert read_plan(tmp_path / "elsewhere") is None
    (tmp_path / "suite.json").write_text('{"baseline": "a"}')
    with pytest.raises(InputError, match=r"suite\.json: cannot be read"):
        read_plan(tmp_path)


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "suites").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_suite_here_can_be_run(file, tmp_path):
    """Each arm in each scenario: its configuration loads, and a branch finds its checkpoint. One seed and rate stand for all. A
    teacher, which the suite file says how to make, is missing here."""
    suite = load_suite(file)
    one_of_each = {(run.planned.arm, run.planned.scenario): run for run in expand(suite, tmp_path)}.values()
    runs = {run.name: run for run in expand(suite, tmp_path)}
    needed = {run.name: run for each in one_of_each for run in (each, runs.get(each.parent)) if run is not None}
    overrides = {name: run.overrides for name, run in needed.items()}
    parents = {name: (run.parent, run.parent_step) for name, run in needed.items() if run.parent is not None}
    problems = check(file.parent / suite.recipe, overrides, parents, tmp_path)["problems"]
    assert [
        text for text in problems if not text.startswith("objective.teacher: there is no checkpoint at runs/")
    ] == []
    for command in suite.analyses:
        read_analysis(command, [*runs.values()], tmp_path)


def test_a_directory_that_cannot_be_is_refused_before_the_check(tmp_path, monkeypatch):
    (tmp_path / "suite.yaml").write_text("recipe: x.yaml\nout: out\narms: {a: []}\n")
    (tmp_path / "file").touch()
    (tmp_path / "x.yaml").touch()
    monkeypatch.setattr(
        sys, "argv", ["run_suite.py", str(tmp_path / "suite.yaml"), "--out", str(tmp_path / "file" / "out")]
    )
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}/file is no directory; choose another with --out")):
        main()


def test_a_recipe_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "suite.yaml").write_text("recipe: x.yaml\nout: out\narms: {a: [], b: []}\n")
    monkeypatch.setattr(sys, "argv", ["run_suite.py", str(tmp_path / "suite.yaml")])
    told = f"{tmp_path}/suite.yaml: recipe: {tmp_path}/x.yaml: no such file; it is relative to the suite's file"
    with pytest.raises(InputError, match=f"^{re.escape(told)}$"):
        main()

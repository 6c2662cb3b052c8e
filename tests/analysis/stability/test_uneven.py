"""Arms of one suite with different seeds, and seeds that lack a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from analysis.stability.compare import COMMON, OWN_BEST, Row, study
from analysis.stability.fairness import seeds_line, warnings
from analysis.stability.runs import find_runs
from analysis.stability.tables import sweep_table
from record.suite import PlannedRun, SuitePlan, read_plan, write_plan

from .made import write_suite

LEVELS = {"base": {0.001: 4.5, 0.01: 4.0, 0.1: 5.0}, "few": {0.001: 4.4, 0.01: 3.9, 0.1: 4.2}}


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Four seeds of the baseline, two of an arm, as planned."""
    folder = write_suite(tmp_path / "suite", LEVELS, (0, 1, 2, 3))
    plan = json.loads((folder / "suite.json").read_text())
    for run in plan["runs"]:
        if run["arm"] == "few" and run["seed"] > 1:
            shutil.rmtree(folder / run["name"])
    plan["runs"] = [run for run in plan["runs"] if (folder / run["name"]).is_dir()]
    (folder / "suite.json").write_text(json.dumps(plan))
    return folder


def row(rows: list[Row], arm: str = "few") -> Row:
    return next(each for each in rows if each.arm == arm)


def test_common_seeds_are_paired_and_nothing_is_missing(suite: Path) -> None:
    found = study(find_runs([str(suite)]))
    for rows in (found.rows("calm", OWN_BEST, "final_nll"), found.rows("calm", COMMON, "final_nll")):
        assert (row(rows).difference.n, row(rows).difference.left_out) == (2, ())
        assert row(rows).difference.effect.mean == pytest.approx(-0.1, abs=0.005)
    assert row(found.sensitivity_rows("calm")).difference.n == 2
    assert not [line for line in warnings(found) if "seed" in line]
    assert seeds_line(found.comparison) == (
        "seeds: 4 of base; 2 of few; each comparison pairs those that both arms have, and says how many"
    )


def test_equal_seeds_need_no_sentence_and_arms_without_a_common_one_a_warning(tmp_path: Path) -> None:
    same = write_suite(tmp_path / "same", LEVELS, (0, 1))
    assert seeds_line(find_runs([str(same)])) is None
    plan = read_plan(same)
    assert plan is not None
    write_plan(
        same, type(plan)("base", None, tuple(run for run in plan.runs if (run.arm == "base") == (run.seed == 0)))
    )
    found = study(find_runs([str(same)]))
    assert "few and base have no seed in common, and are not compared" in warnings(found)


def test_a_seed_that_lacks_a_rate_is_named_and_loses_its_sensitivity_alone(tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "suite", LEVELS, (0, 1, 2))
    shutil.rmtree(suite / "few_lr0.1_seed1")
    found = study(find_runs([str(suite)]))
    final, sensitivity = row(found.rows("calm", OWN_BEST, "final_nll")), row(found.sensitivity_rows("calm"))
    assert (final.difference.n, sensitivity.difference.n) == (3, 2)
    assert sensitivity.difference.left_out == (1,)
    assert "without a sensitivity, as these rates are missing: few seed 1 (0.1)" in warnings(found)
    table = sweep_table(found, "calm")
    assert table is not None
    assert [each[1] for each in table.rows] == ["3", "2 of 3"]


def test_an_arm_whose_only_seed_chooses_its_own_rate_is_named(tmp_path: Path) -> None:
    told = "a single seed chooses the rate at which it is judged, so that own best rate favours base, few"
    for name, seeds, there in (("one", (0,), True), ("three", (0, 1, 2), False)):
        found = study(find_runs([str(write_suite(tmp_path / name, LEVELS, seeds))]))
        assert (told in warnings(found)) == there
        assert any("a single seed" in line for line in warnings(found)) == there


def test_an_arm_without_a_scenario_is_named_and_has_no_other_rates_there(tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "suite", LEVELS, (0, 1, 2))
    plan = read_plan(suite)
    assert plan is not None
    extra = PlannedRun("base_hit_seed0", "base", "hit", 0.01, 0)
    write_plan(suite, SuitePlan(plan.baseline, plan.control, (*plan.runs, extra)))
    told = warnings(study(find_runs([str(suite)])))
    assert "few has no runs in hit" in told
    assert not any("other rates" in line for line in told)


def test_a_sensitivity_is_compared_over_the_rates_of_both_arms(tmp_path: Path) -> None:
    levels = LEVELS | {"few": {0.001: 4.4, 0.01: 3.9}}
    found = study(find_runs([str(write_suite(tmp_path / "suite", levels, (0, 1, 2)))]))
    assert row(found.sensitivity_rows("calm")).difference.effect.mean == pytest.approx(0.0, abs=1e-9)
    assert "few has other rates than base in calm" in warnings(found)
    assert "without a sensitivity" not in " ".join(warnings(found))

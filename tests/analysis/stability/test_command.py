"""The whole command on small suites."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.show.tables import WIDTH
from analysis.stability.__main__ import main
from analysis.stability.compare import COMMON, OWN_BEST, Row, noise_of, study
from analysis.stability.runs import Cell, find_runs
from common.errors import InputError
from record.suite import PlannedRun, SuitePlan, write_plan
from tests.analysis.written import write_run
from tests.conftest import ROOT, python

from .made import STEPS, config, curve, write_suite

LEVELS = {
    "base": {0.001: 4.5, 0.01: 4.0, 0.1: 5.0},
    "again": {0.001: 4.5, 0.01: 4.0, 0.1: 5.0},
    "better": {0.001: 4.4, 0.01: 3.9, 0.1: 4.2},
}


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return write_suite(tmp_path / "suite", LEVELS, (0, 1, 2), control="again")


def analysed(out: Path, *arguments: str) -> dict[str, Any]:
    main([*arguments, "--out", str(out)])
    found: dict[str, Any] = json.loads((out / "stability.json").read_text(encoding="utf-8"))
    return found


def row(path: Path, arm: str, basis: str = OWN_BEST, key: str = "final_nll", scenario: str = "calm") -> Row:
    return next(r for r in study(find_runs([str(path)])).rows(scenario, basis, key) if r.arm == arm)


def test_the_command_as_a_process(suite: Path, tmp_path: Path) -> None:
    done = python("-m", "analysis.stability", str(suite), "--out", str(tmp_path / "out"), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert max(map(len, done.stdout.splitlines()[:-1])) <= WIDTH
    assert len(done.stdout.splitlines()) < 50
    assert "27 of 27 planned runs" in done.stdout
    written = {path.name for path in (tmp_path / "out").iterdir()}
    named = done.stdout.splitlines()[-1].partition(": ")[2].split(", ")
    assert written == set(named)
    assert {"stability.json", "runs.csv", "comparisons.csv", "rates.png", "curves.png", "differences.png"} <= written
    with (tmp_path / "out" / "runs.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 27


def test_a_better_arm_is_shown_and_the_control_is_null(suite: Path) -> None:
    better, again = row(suite, "better"), row(suite, "again")
    assert better.difference.effect.mean == pytest.approx(-0.1, abs=0.005)
    assert (better.verdict, better.null, better.difference.n) == ("better", False, 3)
    assert again.null
    assert again.control
    assert again.difference.n == 3


def test_the_noise_floor_is_told_first(suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The interval of a standard deviation from the tables of chi squared, for four values: 0.5665 to 3.7287 times it."""
    noise = noise_of([1.0, 2.0, 3.0, 4.0])
    assert (noise.deviation, noise.seeds) == (pytest.approx(1.29099, abs=1e-5), 4)
    assert (noise.low, noise.high) == (pytest.approx(0.7313, abs=1e-4), pytest.approx(4.8136, abs=2e-4))
    of_suite = analysed(tmp_path / "out", str(suite))["noise"]
    told = f"noise floor: standard deviation of the baseline's final NLL {of_suite['deviation']:.4f} ["
    assert capsys.readouterr().out.splitlines()[1].startswith(told)
    assert told in (tmp_path / "out" / "stability.md").read_text(encoding="utf-8")
    assert of_suite["seeds"] == 3


def test_a_control_that_differs_is_told_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    levels = LEVELS | {"again": {0.001: 4.5, 0.01: 4.3, 0.1: 5.0}}
    suite = write_suite(tmp_path / "suite", levels, (0, 1, 2), control="again")
    told = analysed(tmp_path / "out", str(suite))["warnings"]
    assert told[0].startswith("THE A/A CONTROL IS NOT NULL: again")
    assert "no difference from the baseline in 0 of 2 comparisons" in capsys.readouterr().out


def test_holm_counts_the_arms_without_the_control(tmp_path: Path) -> None:
    levels = LEVELS | {"other": LEVELS["base"]}
    suite = write_suite(tmp_path / "suite", levels, (0, 1, 2, 3), control="again")
    better, again = row(suite, "better"), row(suite, "again")
    assert better.adjusted == pytest.approx(2 * (better.difference.p or 0))
    assert again.adjusted == again.difference.p


def test_each_arm_is_compared_at_its_own_best_rate(tmp_path: Path) -> None:
    levels = {"base": {0.001: 4.5, 0.01: 4.0}, "slow": {0.001: 4.0, 0.01: 4.5}}
    suite = write_suite(tmp_path / "suite", levels, (0, 1, 2))
    assert row(suite, "slow", OWN_BEST).difference.effect.mean == pytest.approx(0.0, abs=0.01)
    assert row(suite, "slow", COMMON).difference.effect.mean == pytest.approx(0.5, abs=0.01)
    assert row(suite, "slow", "rate 0.001").difference.effect.mean == pytest.approx(-0.5, abs=0.01)


def without_rates(folder: Path, rates: dict[str, float], levels: dict[str, float]) -> Path:
    """A suite that leaves the rate to the recipe and the arms."""
    plan = []
    for arm, rate in rates.items():
        for seed in (0, 1, 2):
            plan.append(PlannedRun(f"{arm}_seed{seed}", arm, None, None, seed))
            rows = curve(seed, levels[arm])
            rows[-1]["validation/nll"] += 0.001 * ((7 * seed + len(arm)) % 5)
            write_run(folder / plan[-1].name, rows, config=config(seed, rate, head={"kind": arm}))
    write_plan(folder, SuitePlan(next(iter(rates)), None, tuple(plan)))
    return folder


def test_arms_that_set_a_rate_of_their_own_are_compared_at_it(tmp_path: Path) -> None:
    suite = without_rates(tmp_path / "suite", {"base": 0.01, "other": 0.005}, {"base": 4.0, "other": 4.3})
    found = study(find_runs([str(suite)]))
    assert found.bases("calm") == [OWN_BEST, COMMON]
    own = row(suite, "other", OWN_BEST).difference
    assert (own.n, own.effect.mean) == (3, pytest.approx(0.3, abs=0.01))
    assert row(suite, "other", COMMON).difference.n == 0


def test_a_run_that_is_missing_has_the_rate_of_its_arm(tmp_path: Path) -> None:
    """Where the plan names none. Otherwise its arm would seem to have two."""
    suite = without_rates(tmp_path / "suite", {"base": 0.01, "other": 0.01}, {"base": 4.0, "other": 4.3})
    for name in ("base_seed1", "other_seed2"):
        shutil.rmtree(suite / name)
    found = study(find_runs([str(suite)]))
    assert {cell.rate for cell in found.comparison.planned} == {0.01}
    assert found.bases("calm") == [COMMON]
    assert row(suite, "other", COMMON).difference.left_out == (1, 2)
    assert "other rates" not in " ".join(analysed(tmp_path / "out", str(suite))["warnings"])


def test_the_smallest_difference_is_for_the_arms_that_are_compared(tmp_path: Path) -> None:
    """An arm that is the baseline to the bit makes another's difference as hard to show as one that differs; one of a single
    seed does not."""
    levels = {"base": {0.01: 4.0}, "other": {0.01: 4.1}}
    found = {"alone": row(write_suite(tmp_path / "alone", levels, (0, 1, 2)), "other", COMMON).smallest}
    for arm, level in (("same", 4.0), ("weak", 4.3)):
        suite = write_suite(tmp_path / arm, levels | {arm: {0.01: level}}, (0, 1, 2))
        found[arm] = row(suite, "other", COMMON).smallest
    assert row(tmp_path / "same", "same", COMMON).difference.p == 1.0
    for seed in (1, 2):
        shutil.rmtree(tmp_path / "weak" / f"weak_lr0.01_seed{seed}")
    found["single"] = row(tmp_path / "weak", "other", COMMON).smallest
    assert found["alone"] == found["single"]
    assert found["same"] == found["weak"] > found["alone"]


def test_missing_and_unfinished_runs_are_left_out_and_named(suite: Path, tmp_path: Path) -> None:
    shutil.rmtree(suite / "better_lr0.01_seed1")
    (suite / "better_lr0.1_seed2" / "status.json").write_text('{"status": "running"}')
    (suite / "base_lr0.1_seed0" / "metrics.jsonl").write_text("nothing\n")
    found = analysed(tmp_path / "out", str(suite))
    why = {Path(one["run"]).name: one["why"] for one in found["left_out"]}
    assert set(why) == {"better_lr0.01_seed1", "better_lr0.1_seed2", "base_lr0.1_seed0"}
    assert why["better_lr0.01_seed1"] == "no such directory"
    assert why["better_lr0.1_seed2"] == f"not ended: running at step {STEPS}"
    page = (tmp_path / "out" / "stability.md").read_text(encoding="utf-8")
    assert all(name in page for name in why)
    assert len(found["runs"]) == 24


def test_runs_that_diverged_count_as_their_initial_loss(suite: Path, tmp_path: Path) -> None:
    rows = curve(0)[:20]
    rows[-1]["loss/nll"] = "NaN"
    for seed in (0, 1, 2):
        run = suite / f"base_lr0.1_seed{seed}"
        shutil.rmtree(run)
        write_run(run, rows, config=config(seed, 0.1, head={"kind": "base"}), status="diverged")
    found = analysed(tmp_path / "out", str(suite))
    sweep = next(one for one in found["sweeps"] if one["arm"] == "base")
    assert sweep["largest_stable"] == 0.01
    assert sweep["sensitivity"]["0"] == pytest.approx((4.5 + rows[0]["loss/nll"] - 2 * 4.0) / 3, abs=0.01)
    share = next(s for s in found["shares"] if (s["arm"], s["measure"], s["rate"]) == ("base", "diverged", "0.1"))
    assert (share["k"], share["n"]) == (3, 3)
    assert any(line.startswith("diverged or ended above the initial NLL") for line in found["warnings"])


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "suite", LEVELS, (0,))
    found = analysed(tmp_path / "out", str(suite))
    assert all(one["low"] is None and one["n"] <= 1 for rows in found["comparisons"].values() for one in rows)
    assert any(line.startswith("no A/A control") for line in found["warnings"])


def test_runs_without_a_plan_are_grouped_by_their_configurations(tmp_path: Path) -> None:
    paths = []
    for arm, level in (("plain", 4.0), ("other", 3.8)):
        for rate in (0.01, 0.1):
            for seed in (0, 1):
                own = config(seed, rate, head={"kind": arm})
                paths.append(write_run(tmp_path / f"{arm}_lr{rate}_seed{seed}", curve(seed, level), config=own))
                hit = own | {"stress": [{"kind": "scale_lr", "step": 40}]}
                paths.append(
                    write_run(tmp_path / f"{arm}_hit_lr{rate}_seed{seed}", curve(seed, level, 1.0), config=hit)
                )
    found = find_runs(list(map(str, paths)))
    assert found.arms == ("plain", "other")
    assert found.scenarios == ("calm", "scale_lr")
    assert found.rates("other", "scale_lr") == [0.01, 0.1]
    assert found.runs[Cell("other", "scale_lr", 0.1, 1)].name == "other_hit_lr0.1_seed1"
    assert find_runs(list(map(str, paths)), "other").arms == ("other", "plain")


def test_a_rate_that_no_run_names_is_no_sweep(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path / f"{arm}_seed{s}", curve(s, 4.0), config={"seed": s, "arm": arm})
        for arm in "ab"
        for s in (0, 1, 2)
    ]
    found = analysed(tmp_path / "out", *map(str, paths))
    assert found["sweeps"] == []
    assert {one["basis"] for rows in found["comparisons"].values() for one in rows} == {COMMON}
    assert not (tmp_path / "out" / "rates.png").exists()


def test_damage_is_that_of_the_same_arm_rate_and_seed(tmp_path: Path) -> None:
    plan = []
    for arm, bump in (("base", 1.0), ("tough", 0.5)):
        for seed in (0, 1, 2):
            for scenario, own in (("calm", 0.0), ("hit", bump + 0.01 * seed)):
                name = f"{arm}_{scenario}_seed{seed}"
                write_run(tmp_path / name, curve(seed, 4.0, own), config=config(seed, head={"kind": arm}))
                plan.append(PlannedRun(name, arm, scenario, 0.01, seed))
    write_plan(tmp_path, SuitePlan("base", None, tuple(plan)))
    found = study(find_runs([str(tmp_path)]))
    assert found.values("damage_excess", "tough", "hit", 0.01) == pytest.approx({0: 5.0, 1: 5.1, 2: 5.2})
    (against,) = found.rows("hit", COMMON, "damage_excess")
    assert against.difference.effect.mean == pytest.approx(-5.0)
    assert found.time_back("tough", "hit") == ([10.0] * 3, [True] * 3)


def test_what_is_not_the_same_is_told(suite: Path, tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        for rate in ("0.001", "0.01", "0.1"):
            (suite / f"better_lr{rate}_seed{seed}" / "environment.json").write_text('{"parameters": 20}')
            (suite / f"base_lr{rate}_seed{seed}" / "environment.json").write_text('{"parameters": 10}')
    told = analysed(tmp_path / "out", str(suite))["warnings"]
    assert "runs differ in parameters: base 10, better 20" in told


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda plan: plan["runs"][0].update(name="../elsewhere"), "outside"),
        (lambda plan: plan["runs"][1].update(plan["runs"][0]), "of another run"),
        (lambda plan: plan.update(runs=[]), "plans no runs"),
        (lambda plan: plan.update(baseline="nobody"), "nobody"),
    ],
)
def test_a_plan_that_makes_no_sense_is_told_in_a_line(suite: Path, change: Any, named: str) -> None:
    plan = json.loads((suite / "suite.json").read_text())
    change(plan)
    (suite / "suite.json").write_text(json.dumps(plan))
    with pytest.raises(InputError, match=named):
        find_runs([str(suite)])


def test_a_suite_is_given_alone_and_must_have_begun(suite: Path) -> None:
    with pytest.raises(InputError, match="give it alone"):
        find_runs([str(suite), str(suite / "base_lr0.01_seed0")])
    for run in suite.glob("*_seed*"):
        shutil.rmtree(run)
    with pytest.raises(InputError, match="none of the 27 planned runs has ended"):
        find_runs([str(suite)])


def test_the_finals_of_each_rate_are_those_of_its_seeds(suite: Path, tmp_path: Path) -> None:
    found = analysed(tmp_path / "out", str(suite))
    runs = [run for run in found["runs"] if (run["arm"], run["rate"]) == ("better", 0.1)]
    (cell,) = [each for each in found["by_rate"] if (each["arm"], each["rate"]) == ("better", 0.1)]
    values = [run["final_nll"] for run in runs]
    assert cell["seeds"] == len(values) == 3
    assert (cell["mean"], cell["lowest"]) == (pytest.approx(sum(values) / 3), min(values))
    assert cell["noise"]["deviation"] == pytest.approx(np.std(values, ddof=1))

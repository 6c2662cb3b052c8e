"""Branches that could not begin, since the run that they begin at diverged before."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from analysis.claims.base import runs_at
from analysis.claims.loss_spikes import over_everything
from analysis.stability.__main__ import main
from analysis.stability.compare import COMMON, Study, study
from analysis.stability.curve import moving_median
from analysis.stability.fairness import unbegun_line
from analysis.stability.runs import Cell, find_runs
from record.suite import PlannedRun, SuitePlan, write_plan
from tests.analysis.written import write_run

from .made import STEPS, config, curve

BRANCH = 30
SEEDS = (0, 1, 2)
SAID = "1 branch counts as diverged, for the run that it begins at diverged before"
LOST = Cell("weak", "hit", 0.01, 1)


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Two arms of three seeds, calm and hit in a branch from step 30; the calm run of one diverged at step 20."""
    folder, plan = tmp_path / "suite", []
    for arm in ("base", "weak"):
        for seed in SEEDS:
            calm, hit = (PlannedRun(f"{arm}_{name}_s{seed}", arm, name, 0.01, seed) for name in ("calm", "hit"))
            plan += [calm, hit]
            own = config(seed, head={"kind": arm})
            if (arm, seed) == ("weak", 1):
                write_run(folder / calm.name, curve(seed)[:20], config=own, status="diverged")
                continue
            write_run(folder / calm.name, curve(seed), config=own)
            branch = own | {"branch_from": f"elsewhere/{calm.name}@{BRANCH}", "stress": [{"kind": "x"}]}
            write_run(folder / hit.name, curve(seed, bump=1.0, first=BRANCH + 1), config=branch)
    write_plan(folder, SuitePlan("base", None, tuple(plan)))
    return folder


def found_in(suite: Path) -> Study:
    return study(find_runs([str(suite)]))


def test_it_counts_as_a_run_that_diverged(suite: Path) -> None:
    found, initial = found_in(suite), curve(1)[0]["loss/nll"]
    assert found.comparison.left_out == {}
    assert list(found.comparison.unbegun) == [LOST]
    values = found.measured[LOST].values
    keys = ("ended", "survived", "diverged", "back", "final_nll", "capped", "damage_nll")
    assert [values[key] for key in keys] == ["not begun", 0, 1, 0, initial, 1, 0.0]
    assert values["back_steps"] == STEPS - 40 + 1  # from the stress to the end
    assert values["lost_tokens"] == 64 * (STEPS - BRANCH)
    lowest = moving_median(np.array([row["loss/nll"] for row in curve(1)[:20]] + [initial] * 5)).min()
    assert values["excess"] == pytest.approx((STEPS - BRANCH) * (initial - lowest))
    assert values["spikes_nll"] is None  # nothing was judged, which is no evidence of calm
    assert values.get("damage_excess") is None  # the calm run has no loss either
    assert found.time_back("weak", "hit") == ([10, 21, 10], [True, False, True])


def test_shares_and_differences_have_it(suite: Path) -> None:
    found, initial = found_in(suite), curve(1)[0]["loss/nll"]
    for key, count in (("survived", 2), ("diverged", 1), ("back", 2)):
        share = found.share(key, "weak", "hit")
        assert share is not None
        assert (share.k, share.n) == (count, 3)
    (row,) = found.rows("hit", COMMON, "final_nll")
    assert (row.difference.n, row.difference.left_out) == (3, ())
    assert row.difference.effect.mean == pytest.approx((initial - 4.01) / 3)


def test_claims_have_it_where_a_number_is_compared_and_not_where_a_run_is_read(suite: Path) -> None:
    found = found_in(suite)
    assert over_everything(found, "survived", "weak")["weak"] == {0: 1.0, 1: 0.0, 2: 1.0}
    assert set(runs_at(found, "weak", "hit", COMMON)) == {0, 2}


def test_the_report_says_so(suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(suite), "--out", str(tmp_path / "out")])
    assert f"\n{SAID}\n" in capsys.readouterr().out
    page = (tmp_path / "out" / "stability.md").read_text(encoding="utf-8")
    assert f"- {SAID}\n" in page
    assert "| weak | hit | 2 of 3 | 1 |  |" in page
    json_of = json.loads((tmp_path / "out" / "stability.json").read_text(encoding="utf-8"))
    (one,) = json_of["unbegun"]
    assert (one["arm"], one["seed"], one["begins_at"], one["step"]) == ("weak", 1, "weak_calm_s1", BRANCH)
    assert json_of["left_out"] == []
    with (tmp_path / "out" / "runs.csv").open() as file:
        assert next(run["ended"] for run in csv.DictReader(file) if run["run"] == "weak_hit_s1") == "not begun"


def test_a_branch_of_it_does_not_begin_either(suite: Path) -> None:
    plan = json.loads((suite / "suite.json").read_text())
    for seed in SEEDS:
        name = f"weak_again_s{seed}"
        plan["runs"].append({"name": name, "arm": "weak", "scenario": "again", "rate": 0.01, "seed": seed})
        if seed != 1:
            own = config(seed, branch_from=f"elsewhere/weak_hit_s{seed}@50", head={"kind": "weak"})
            write_run(suite / name, curve(seed, first=51), config=own)
    (suite / "suite.json").write_text(json.dumps(plan))
    found = found_in(suite)
    assert set(found.comparison.unbegun) == {LOST, LOST._replace(scenario="again")}
    assert found.measured[LOST._replace(scenario="again")].values["final_nll"] == curve(1)[0]["loss/nll"]
    assert unbegun_line(found.comparison) == (
        "2 branches count as diverged, for the run that they begin at diverged before"
    )


@pytest.mark.parametrize("reason", ["finished", "later", "missing", "begun"])
def test_what_is_missing_for_another_reason_is_left_out(suite: Path, reason: str) -> None:
    """The calm run finished, diverged after the branch's step, or is missing itself; or the branch's directory is there."""
    calm, own = suite / "weak_calm_s1", config(1, head={"kind": "weak"})
    if reason == "begun":
        (suite / "weak_hit_s1").mkdir()
    else:
        shutil.rmtree(calm)
    if reason in ("finished", "later"):
        write_run(calm, curve(1)[:31], config=own, status="finished" if reason == "finished" else "diverged")
    found = find_runs([str(suite)])
    assert found.unbegun == {}
    assert LOST in found.left_out
    assert unbegun_line(found) is None

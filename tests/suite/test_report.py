"""The table of how a suite's runs ended: its final losses are those of analysis.stability."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.stability.compare import COMMON, study
from analysis.stability.measure import measure
from analysis.stability.runs import find_runs
from record.finished import load_run
from record.suite import PlannedRun, SuitePlan, write_plan
from suite import report
from tests.analysis.stability.made import config, curve
from tests.analysis.written import Row, write_run

INITIAL = curve(0)[0]["loss/nll"]
ENDS = {"base": "finished", "lost": "diverged", "high": "finished", "branch": "diverged", "stopped": "stopped"}
PLAN = SuitePlan("base", None, tuple(PlannedRun(f"{arm}_s0", arm, None, 0.01, 0) for arm in (*ENDS, "never")))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run that finished at 4 nats, one that diverged, one that ended above its initial loss, a branch that diverged, and one
    that was stopped after a validation."""
    high = curve(0)
    high[-1]["validation/nll"] = 12.0
    rows: dict[str, list[Row]] = {
        "base": curve(0),
        "lost": curve(0)[:20],
        "high": high,
        "branch": curve(0, first=31)[:9],
    }
    for arm, own in {**rows, "stopped": curve(0)}.items():
        more = {"branch_from": "elsewhere/base_s0@30"} if arm == "branch" else {}
        status = ENDS[arm] if arm != "stopped" else "preempted"
        write_run(tmp_path / f"{arm}_s0", own, config=config(0, **more), status=status)
    return tmp_path


def rows_of(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in text.partition("\n\n")[0].splitlines()[1:]}


def test_a_run_that_diverged_or_ended_too_high_has_its_initial_loss(out: Path) -> None:
    text = report.results(PLAN, {f"{arm}_s0": end for arm, end in ENDS.items()}, out)
    nll = [f"{INITIAL:.4f}", f"{INITIAL - 4:+.4f}"]
    assert rows_of(text) == {
        "base_s0": ["finished", "60", "4.0000"],
        "lost_s0": ["diverged", "20", *nll],
        "high_s0": ["finished", "60", *nll],
        "branch_s0": ["diverged", "39", *nll],
        "stopped_s0": ["stopped", "60"],
        "never_s0": ["not", "started"],
    }
    assert text.endswith("\n\n3 runs diverged, or ended above their initial NLL, and count with that")


def test_it_is_the_final_loss_of_the_analysis(out: Path) -> None:
    base = load_run(out / "base_s0")
    for arm, shown in (("base", 4.0), ("lost", INITIAL), ("high", INITIAL), ("branch", INITIAL)):
        assert measure(load_run(out / f"{arm}_s0"), base if arm == "branch" else None).values["final_nll"] == shown


def test_the_rows_of_many_runs_have_it_too(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MOST_ROWS", 2)
    text = report.results(PLAN, {f"{arm}_s0": end for arm, end in ENDS.items()}, out)
    assert rows_of(text)["lost"] == ["0.01", "1", f"{INITIAL:.4f}", f"{INITIAL - 4:+.4f}"]


def test_one_run_is_told_in_the_singular(out: Path) -> None:
    text = report.results(PLAN, {"base_s0": "finished", "lost_s0": "diverged"}, out)
    assert text.endswith("\n\n1 run diverged, or ended above its initial NLL, and counts with that")


def branches(folder: Path, steps: int) -> tuple[SuitePlan, dict[str, str]]:
    """Arms of three seeds, calm, hit in a branch from step 30, and again in a branch of that from step 50. The calm run of one
    diverged at ``steps``, and its branches were not started. What the suite knows of how they ended."""
    plan, ends = [], {}
    for arm in ("base", "weak"):
        for seed in range(3):
            calm, hit, again = (PlannedRun(f"{arm}_{s}_s{seed}", arm, s, 0.01, seed) for s in ("calm", "hit", "again"))
            plan += [calm, hit, again]
            own = config(seed, head={"kind": arm})
            if (arm, seed) == ("weak", 1):
                write_run(folder / calm.name, curve(seed)[:steps], config=own, status="diverged")
                ends |= {calm.name: "diverged", hit.name: f"not started: {calm.name} has no step 30"}
                continue
            ends |= dict.fromkeys((calm.name, hit.name, again.name), "finished")
            write_run(folder / calm.name, curve(seed), config=own)
            for run, parent, step in ((hit, calm, 30), (again, hit, 50)):
                branch = own | {"branch_from": f"elsewhere/{parent.name}@{step}", "stress": [{"kind": "x"}]}
                write_run(folder / run.name, curve(seed, 4.5, bump=1.0, first=step + 1), config=branch)
    write_plan(folder, SuitePlan("base", None, tuple(plan)))
    return SuitePlan("base", None, tuple(plan)), ends


def test_a_branch_that_could_not_begin_counts_as_in_the_analysis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, ends = branches(tmp_path, 20)
    initial = curve(1)[0]["loss/nll"]
    text = report.results(plan, ends, tmp_path)
    assert rows_of(text)["weak_hit_s1"] == ["not", "begun", f"{initial:.4f}", f"{initial - 4.51:+.4f}"]
    assert text.endswith(
        "\n\n3 runs diverged, or ended above their initial NLL, and count with that; "
        "2 are branches of runs that diverged before"
    )
    monkeypatch.setattr(report, "MOST_ROWS", 2)
    table = report.results(plan, ends, tmp_path).partition("\n\n")[0].splitlines()
    found = study(find_runs([str(tmp_path)]))
    for scenario in ("calm", "hit", "again"):
        (row,) = (line.split() for line in table if line.split()[:2] == ["weak", scenario])
        values = found.values("final_nll", "weak", scenario, 0.01)
        assert len(values) == 3
        assert row[2:6] == ["0.01", "2", "1", f"{sum(values.values()) / 3:.4f}"]
        (compared,) = found.rows(scenario, COMMON, "final_nll")
        assert row[6] == f"{compared.difference.effect.mean:+.4f}"


@pytest.mark.parametrize("reason", ["later", "begun", "failed"])
def test_a_branch_that_is_missing_for_another_reason_has_no_final_loss(tmp_path: Path, reason: str) -> None:
    """The calm run diverged after the branch's step, or failed; or the branch's directory is there."""
    plan, ends = branches(tmp_path, 31 if reason == "later" else 20)
    if reason == "begun":
        (tmp_path / "weak_hit_s1").mkdir()
    if reason == "failed":
        ends["weak_calm_s1"] = "failed"
    text = report.results(plan, ends, tmp_path)
    assert rows_of(text)["weak_hit_s1"][:2] == ["not", "started:"]
    assert "branch" not in text.rpartition("\n\n")[2]

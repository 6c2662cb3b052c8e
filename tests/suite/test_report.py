"""The table of how a suite's runs ended: its final losses are those of analysis.stability."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.stability.measure import measure
from record.finished import load_run
from record.suite import PlannedRun, SuitePlan
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

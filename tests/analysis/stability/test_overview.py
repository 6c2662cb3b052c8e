"""Arms with rates of their own, and the table of what each has come to."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.stability.compare import COMMON, OWN_BEST, study
from analysis.stability.measure import measure
from analysis.stability.runs import find_runs
from analysis.stability.tables import overview_table, stress_tables
from record.finished import load_run
from record.suite import PlannedRun, SuitePlan, write_plan
from tests.analysis.written import write_run

from .made import STEPS, config, curve

ARMS = {"base": (0.01, 4.0, 0.30), "own": (0.03, 3.9, 0.35)}
"""Rate, final NLL and accuracy."""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Three seeds, each arm at its own rate, calm and under a stress that costs 1 nat for ten steps, the other arm 2."""
    plan = []
    for number, (arm, (rate, level, accuracy)) in enumerate(ARMS.items()):
        for scenario, bump in (("calm", 0.0), ("jump", 1.0 + number)):
            for seed in (0, 1, 2):
                rows = curve(seed, level, bump)
                rows[-1] |= {
                    "validation/nll": level + 0.001 * ((7 * seed + number) % 5),
                    "validation/accuracy": accuracy + 0.001 * ((3 * seed + number) % 4),
                    "validation/ece": 0.02,
                }
                for row in rows:
                    row["objective/weight"] = 0.5 if row["step"] > STEPS * 3 // 4 else 1.0
                stress = [{"kind": "scale_lr", "step": 40, "steps": 10, "factor": 2.0}] if bump else []
                name = f"{arm}_{scenario}_lr{rate:g}_seed{seed}"
                write_run(
                    tmp_path / name,
                    rows,
                    config=config(seed, rate, head={"kind": arm}, objective={"kind": "focal"}, stress=stress),
                )
                plan.append(PlannedRun(name, arm, scenario, rate, seed))
    write_plan(tmp_path, SuitePlan("base", None, tuple(plan)))
    return tmp_path


def test_what_a_run_has_come_to(suite: Path) -> None:
    """The last accuracy and calibration error; c over the last quarter alone."""
    values = measure(load_run(suite / "own_calm_lr0.03_seed1")).values
    assert (values["accuracy"], values["ece"], values["weight"]) == (pytest.approx(0.35), 0.02, 0.5)


def test_each_arm_is_shown_at_its_own_rate(suite: Path) -> None:
    found = study(find_runs([str(suite)]))
    table = overview_table(found)
    assert table is not None
    assert table.title == f"At a glance, calm, {OWN_BEST}"
    assert [row[:6] for row in table.rows] == [
        ["base", "0.01", "4.0020", "0.3017", "0.0200", "0.5"],
        ["own", "0.03", "3.9013*", "0.3513*", "0.0200", "0.5"],
    ]


def test_a_run_that_diverged_has_a_final_nll_but_no_accuracy_and_the_table_says_so(suite: Path) -> None:
    status = suite / "own_calm_lr0.03_seed1" / "status.json"
    status.write_text(status.read_text().replace("finished", "diverged"))
    found = study(find_runs([str(suite)]))
    table = overview_table(found)
    assert table is not None
    counts = [len(found.on(OWN_BEST, key, "own", "calm")) for key in ("final_nll", "accuracy", "ece", "weight")]
    assert counts == [3, 2, 2, 2]
    assert "Accuracy, ECE and c are of the runs that did not diverge." in table.notes


def test_under_a_stress_arms_with_rates_of_their_own_are_compared_at_those(suite: Path) -> None:
    found = study(find_runs([str(suite)]))
    assert (found.stress_basis("jump"), found.bases("jump")) == (OWN_BEST, [OWN_BEST, COMMON])
    (table,) = stress_tables(found)
    lost = [float(row[table.header.index("nat-steps")]) for row in table.rows]
    assert lost == pytest.approx([10, 20], abs=0.5)

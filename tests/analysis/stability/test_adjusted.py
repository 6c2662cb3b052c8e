"""For how many arms p-values are adjusted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from analysis.compare.seeds import smallest_shown
from analysis.stability.compare import COMMON, study
from analysis.stability.runs import find_runs
from tests.analysis.written import write_run

from .made import config, curve, write_suite


def test_an_arm_that_equals_the_baseline_is_adjusted_for(tmp_path: Path) -> None:
    """Two arms of which one has the baseline's final losses, and one half a nat more in every seed."""
    levels = {"base": {0.01: 4.0}, "same": {0.01: 4.0}, "other": {0.01: 4.5}, "again": {0.01: 4.0}}
    suite = write_suite(tmp_path / "suite", levels, range(4), "again")
    for seed in range(4):
        rows = curve(seed, 4.0)
        rows[-1]["validation/nll"] = 4.0 + 0.01 * seed + 0.001 * ((7 * seed + len("base")) % 5)
        run = suite / f"same_lr0.01_seed{seed}"
        shutil.rmtree(run)
        write_run(run, rows, config=config(seed, 0.01, head={"kind": "same"}))
    rows_of = {row.arm: row for row in study(find_runs([str(suite)])).rows("calm", COMMON, "final_nll")}
    same, other, again = (rows_of[arm] for arm in ("same", "other", "again"))
    assert (same.difference.p, same.adjusted, same.null) == (1.0, 1.0, True)
    assert other.adjusted == pytest.approx(2 * other.difference.p)
    assert other.smallest == smallest_shown(other.difference, 2)
    assert again.adjusted == again.difference.p  # adjusted for no other arm

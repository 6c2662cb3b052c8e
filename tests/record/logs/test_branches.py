"""Logs that go back, and those that only seem to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from record.logs.base import Log, RowsBuilder
from record.logs.branches import split
from record.logs.read import read_logs

Row = dict[str, float]


def read(path: Path, rows: list[Row]) -> Log:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (log,) = read_logs(path, {}).logs
    return log


def losses(steps: range, add: float = 0.0, **more: float) -> list[Row]:
    return [{"step": step, "loss": 3 - step / 100 + add, **more} for step in steps]


def test_both_branches_are_kept(tmp_path: Path) -> None:
    log = read(tmp_path / "x", losses(range(1, 101), 1.0) + losses(range(51, 121)) + losses(range(111, 131), 2.0))
    first, second = log.abandoned
    assert (first.from_step, first.to_step, second.from_step, second.to_step) == (100, 51, 120, 111)
    assert first.table.steps.tolist() == list(range(51, 101))
    assert first.table.columns["loss"].tolist() == [row["loss"] for row in losses(range(51, 101), 1.0)]
    assert first.branch.steps.tolist() == list(range(1, 101))
    assert second.table.steps.tolist() == list(range(111, 121))
    assert log.table.steps.tolist() == list(range(1, 131))
    expected = losses(range(1, 51), 1.0) + losses(range(51, 111)) + losses(range(111, 131), 2.0)
    assert log.table.columns["loss"].tolist() == [row["loss"] for row in expected]
    assert log.remarks == ("the step goes back 2 times",)


def test_a_restart_that_has_not_caught_up_leaves_what_it_has_not_reached(tmp_path: Path) -> None:
    log = read(tmp_path / "x", losses(range(1, 101), 1.0) + losses(range(1, 31)))
    (left,) = log.abandoned
    assert (left.from_step, left.to_step, log.table.steps.tolist()) == (100, 1, list(range(1, 31)))


NO_RETURNS: dict[str, list[Row]] = {
    "a row of training and one of evaluation": [
        row for step in range(1, 20) for row in ({"step": step, "loss": 2.0 + step}, {"step": step, "eval_loss": 3.0})
    ],
    "an evaluation that ends late": [*losses(range(1, 30)), {"step": 10, "eval_loss": 3.0}, *losses(range(30, 40))],
    "evaluations after all": [*losses(range(1, 30)), *({"step": step, "eval_loss": 3.0} for step in range(1, 30))],
    "a block twice": losses(range(1, 30)) + losses(range(10, 30)) + losses(range(30, 40)),
    "a rank that writes late": [*losses(range(1, 30)), *losses(range(28, 29), 0.1), *losses(range(30, 40))],
    "two lines out of order": [
        *losses(range(1, 30)),
        *losses(range(31, 32)),
        *losses(range(30, 31)),
        *losses(range(32, 40)),
    ],
}


@pytest.mark.parametrize("name", NO_RETURNS)
def test_what_is_no_return(tmp_path: Path, name: str) -> None:
    rows = NO_RETURNS[name]
    log = read(tmp_path / "x", rows)
    assert log.abandoned == ()
    assert log.table.steps.tolist() == sorted({int(row["step"]) for row in rows})
    for column in ("loss", "eval_loss"):
        values = {int(row["step"]): row[column] for row in rows if column in row}
        there = log.table.written(column) if column in log.table.columns else np.zeros(len(log.table.steps), dtype=bool)
        assert log.table.steps[there].tolist() == sorted(values)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), min_size=1, max_size=8), st.booleans())
def test_nothing_is_lost_and_the_last_value_of_a_step_is_kept(
    stretches: list[tuple[int, int]], first_counts: bool
) -> None:
    """Each value is in what was kept or in an abandoned branch; all losses differ."""
    builder = RowsBuilder()
    steps = [start + i for start, length in stretches for i in range(length)]
    for place, step in enumerate(steps):
        builder.add({"step": step, "loss": float(place)})
    rows = builder.rows(first_counts=first_counts)
    branches = split(rows.columns["step"][1].astype("int64"), rows, "step")
    kept = branches.kept
    assert kept.steps.tolist() == sorted(set(kept.steps.tolist()))
    assert kept.steps[-1] <= max(steps)
    for left in branches.abandoned:
        assert left.to_step <= left.from_step == left.table.steps[-1] == left.branch.steps[-1]
        assert set(left.table.columns["loss"]) <= set(left.branch.columns["loss"])
    everywhere = set(kept.columns["loss"]).union(*(left.table.columns["loss"] for left in branches.abandoned))
    by_step = {}
    for place, step in enumerate(steps):
        by_step.setdefault(step, set()).add(float(place))
    assert all(values & everywhere for values in by_step.values())
    assert set(kept.steps.tolist()) | {s for left in branches.abandoned for s in left.table.steps.tolist()} == set(
        steps
    )

"""What is written in a format is read back exactly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from record.logs.read import read_logs

from .test_formats import write_events

NUMBERS = (
    st.floats(-1e30, 1e30) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0]) | st.integers(-5, 5).map(float)
)
ROWS = st.lists(st.tuples(st.integers(0, 4), NUMBERS, st.none() | NUMBERS), min_size=1, max_size=30)
fuzzed = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

Row = dict[str, Any]


def _jsonl(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _document(path: Path, rows: list[Row]) -> None:
    path.write_text(json.dumps({"log_history": rows}))


def _csv(path: Path, rows: list[Row]) -> None:
    lines = [["" if row[n] is None else repr(row[n]) for n in ("step", "loss", "grad_norm")] for row in rows]
    path.write_text("\n".join(",".join(line) for line in [["step", "loss", "grad_norm"], *lines]))


def _parquet(path: Path, rows: list[Row]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(
        pa.Table.from_pylist(rows, pa.schema({"step": pa.int64(), "loss": pa.float64(), "grad_norm": pa.float64()})),
        path,
    )


def _megatron(path: Path, rows: list[Row]) -> None:
    def line(row: Row) -> str:
        norm = "" if row["grad_norm"] is None else f" grad norm: {row['grad_norm']!r} |"
        return f" iteration {row['step']:8d}/ 1000 | lm loss: {row['loss']!r} |{norm} loss scale: 1.0 |\n"

    path.write_text("".join(map(line, rows)))


@pytest.mark.parametrize("write", [_jsonl, _document, _csv, _parquet, _megatron])
@fuzzed
@given(ROWS)
def test_every_number(tmp_path: Path, write: Any, found: list[tuple[int, float, float | None]]) -> None:
    steps = np.cumsum([1 + gap for gap, _, _ in found]).tolist()
    # The first three losses are numbers: a column of nothing but NaN fills what was not logged, or has none.
    steps = [*steps, *range(steps[-1] + 1, steps[-1] + 2 + len(steps))]
    rows = [{"step": s, "loss": loss, "grad_norm": norm} for s, (_, loss, norm) in zip(steps, found, strict=False)]
    rows += [{"step": s, "loss": 1.5, "grad_norm": 2.5} for s in steps[len(found) :]]
    write(tmp_path / "x", rows)
    (log,) = read_logs(tmp_path / "x", {}).logs
    assert log.table.steps.tolist() == steps
    for role in ("loss", "grad_norm"):
        there = [row[role] is not None for row in rows]
        assert log.table.written(log.roles[role]).tolist() == there
        expected = [row[role] for row in rows if row[role] is not None]
        np.testing.assert_array_equal(log.table.columns[log.roles[role]][there], expected)


@fuzzed
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20))
def test_scalars_of_event_files(tmp_path: Path, values: list[float]) -> None:
    write_events(tmp_path / "x", [(3 * place, {"loss": value}) for place, value in enumerate(values)], 1.0)
    (log,) = read_logs(tmp_path / "x", {}).logs
    assert log.table.steps.tolist() == [3 * place for place in range(len(values))]
    np.testing.assert_array_equal(log.table.columns["loss"], values)


def test_pandas_own_files(tmp_path: Path) -> None:
    frame = pd.DataFrame({"step": range(50), "loss": np.random.default_rng(0).standard_normal(50)})
    frame.to_csv(tmp_path / "a", index=False)
    frame.to_parquet(tmp_path / "b")
    frame.to_json(tmp_path / "c", orient="records", lines=True, double_precision=15)
    for name in "abc":
        (log,) = read_logs(tmp_path / name, {}).logs
        np.testing.assert_allclose(log.table.columns["loss"], frame["loss"], rtol=1e-14)

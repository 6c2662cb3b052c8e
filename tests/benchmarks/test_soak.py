from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import soak
from benchmarks.soak import EVALUATED, PROBED, Sample, growth, last_step, missing, write_metrics
from common.command import exit_status
from record.table import Table, json_lines, read_table
from tests.conftest import called


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["soak", *arguments])
    return exit_status(soak.main)


def test_a_short_soak_tells_memory_rows_and_the_cost_of_each_command(tmp_path: Path) -> None:
    ended = called(soak.main, "--steps", "200", "--rows", "3000", "--out", tmp_path)
    assert ended.returncode == 0, ended.stderr
    out = ended.stdout
    assert "200 steps in " in out
    assert re.search(r"resident memory: \d+ MiB at the end, \d+ MiB at most", out)
    assert "growth after the first 1000 steps: not measured" in out
    assert "metrics.jsonl: complete, 200 rows" in out
    assert re.search(r"3,000 rows of \d+ metrics, \d+ MiB", out)
    for name in ("curves", "summary", "spikes"):
        assert re.search(rf"analysis\.{name} +[\d.]+ s by the clock, +[\d.]+ s of CPU, \d+ MiB at most", out)
    assert (tmp_path / "rows_3000" / "out" / "curves.png").exists()
    kinds = {json.loads(line)["event"] for line in (tmp_path / "soak_200" / "events.jsonl").read_text().splitlines()}
    assert kinds <= {"spike", "spike_opened"}
    assert list((tmp_path / "soak_200" / "checkpoints").glob("step_*"))


@pytest.mark.parametrize("lacking", ["row", "attention", "hidden_kurtosis", "validation", "loss/nll"])
def test_what_a_file_lacks_is_found(lacking: str) -> None:
    steps = np.arange(1, 2 * EVALUATED + 1)
    values = np.ones(len(steps))
    columns = {
        "loss/nll": values.copy(),
        "attention/layer_00/max": np.where(steps % PROBED == 0, 1.0, np.nan),
        "hidden_kurtosis/layer_00": np.where(steps % PROBED == 0, 1.0, np.nan),
        "validation/nll": np.where(steps % EVALUATED == 0, 1.0, np.nan),
    }
    assert missing(Table(steps, columns, {}), len(steps)) == []
    if lacking == "row":
        steps = np.delete(steps, 5)
        columns = {name: np.delete(column, 5) for name, column in columns.items()}
    else:
        name = next(name for name in columns if name.startswith(lacking))
        columns[name][EVALUATED - 1] = np.nan
    (problem,) = missing(Table(steps, columns, {}), 2 * EVALUATED)
    assert lacking in problem


def test_growth_compares_the_last_steps_with_the_first_after_the_warm_up() -> None:
    samples = [Sample(step, 100 if step < 1000 else 200 + (step > 6000) * 10) for step in range(1, 11_000, 50)]
    assert growth(samples) == pytest.approx(0.05)
    assert growth([Sample(step, 7) for step in range(1, 11_000, 50)]) == 0
    assert growth(samples[:30]) is None


def test_the_last_step_is_that_of_the_last_whole_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_step(path) == 0
    path.write_text('{"step": 1}\n{"step": 2, "long": ' + "1" * 70_000 + '}\n{"step": 3}\n{"st')
    assert last_step(path) == 3


def test_the_rows_made_up_are_those_of_a_run_with_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "NON_FINITE_EVERY", 50)
    template = [{"step": 1, "tokens": 8, "grad_norm/total": 2.0, "data/batch": 1}, {"step": 2, "tokens": 16, "a": 3.0}]
    write_metrics(tmp_path / "m.jsonl", [template[0]] * soak.PROBED + [template[1]] * soak.PROBED, 200)
    rows = [row for _, row in json_lines(tmp_path / "m.jsonl")]
    assert [(row["step"], row["tokens"]) for row in rows] == [(i, 8 * i) for i in range(1, 201)]
    table = read_table(tmp_path / "m.jsonl")
    assert set(table.columns) == {"tokens", "grad_norm/total", "data/batch", "a"}
    assert table.non_finite["grad_norm/total"].tolist() == [50, 100, 150, 200]
    values = table.columns["a"][np.isfinite(table.columns["a"])]
    assert len(set(values.tolist())) == len(values) > 50
    assert (values == values.astype(np.float32)).all()
    assert np.abs(np.log(values / 3)).max() < 6 * soak.NOISE


@pytest.mark.parametrize(("option", "value"), [("--steps", "-1"), ("--steps", "199"), ("--rows", "-5")])
def test_mistakes_are_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    assert run(monkeypatch, option, value) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {option}: must be 0 or at least ")
    assert told.count("\n") == 1

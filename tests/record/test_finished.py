from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from analysis import summary
from common.errors import InputError
from record import table as rows_of_files
from record.finished import (
    checkpoint_state,
    checkpoints_of,
    load_run,
    load_runs,
    resolve_checkpoint,
    run_directory,
    unique_labels,
)
from tests.analysis.written import spike, write_run
from tests.conftest import called


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    (problem,) = error.value.problems
    assert "\n" not in problem
    return problem


def test_a_run_is_read_whole(tmp_path: Path) -> None:
    rows = [{"step": 1, "a": 1, "b": 0.5}, {"step": 2, "a": 2.5}, {"step": 3, "a": 4, "b": -1e-3}]
    path = write_run(tmp_path / "r", rows, events=[spike("a", 2)], config={"head": {"kind": "metric"}})
    run = load_run(path)
    assert run.name == "r"
    assert run.metrics.index.tolist() == [1, 2, 3]
    assert run.metrics["a"].tolist() == [1.0, 2.5, 4.0]
    assert run.series("b").to_dict() == {1: 0.5, 3: -1e-3}
    assert run.series("absent").empty
    assert [event["peak_step"] for event in run.spikes("a")] == [2]
    assert run.spikes("b") == []
    assert run.setting("head", "kind") == "metric"
    assert run.setting("head", "scale") is None
    assert run.setting("objective", "kind") is None
    assert run.status["status"] == "finished"


@pytest.mark.parametrize("size", [1, 40, 2**22])
def test_spelled_out_values_are_numbers_and_differ_from_missing_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(rows_of_files, "BLOCK_BYTES", size)
    rows = [{"step": 1, "a": "NaN"}, {"step": 2, "a": "Infinity"}, {"step": 3}, {"step": 4, "a": "-Infinity"}]
    run = load_run(write_run(tmp_path / "r", [*rows, {"step": 5, "a": 7, "late": 1}, {"step": 6, "a": None}]))
    np.testing.assert_array_equal(run.metrics["a"], [np.nan, np.inf, np.nan, -np.inf, 7.0, np.nan])
    assert run.non_finite["a"].tolist() == [1, 2, 4]
    assert run.series("a").index.tolist() == [1, 2, 4, 5]
    assert run.series("late").to_dict() == {5: 1.0}


@pytest.mark.parametrize("size", [1, 2**22])
def test_the_rows_of_a_step_are_one_and_of_each_key_the_last_value_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(rows_of_files, "BLOCK_BYTES", size)
    rows = [{"step": 1, "a": 1.0}, {"step": 2, "a": "NaN", "b": 5.0, "c": 1.0}, {"step": 3, "a": 3.0}]
    rows += [{"step": 2, "a": 2.0, "b": None, "c": "NaN"}, {"step": 2, "d": 4.0}]
    run = load_run(write_run(tmp_path / "r", rows))
    assert run.metrics["a"].to_dict() == {1: 1.0, 2: 2.0, 3: 3.0}
    assert [run.value(key, 2) for key in "bd"] == [5.0, 4.0]
    assert {key: steps.tolist() for key, steps in run.non_finite.items()} == {"c": [2]}


def test_a_branch_is_read_with_the_rows_before_it_only_if_asked(tmp_path: Path) -> None:
    rows = [{"step": 3, "a": 3.0, "b": "NaN"}, {"step": 4, "a": "Infinity", "late": 1}]
    path = write_run(tmp_path / "r", rows)
    (path / "branch_point").mkdir()
    before = path / "branch_point" / "rows.jsonl"
    before.write_text('{"step": 1, "a": "NaN", "early": 7}\n{"step": 2, "a": 2.0}\n')
    assert load_run(path).metrics.index.tolist() == [3, 4]
    run = load_run(path, with_parent_rows=True)
    assert (run.metrics.index.tolist(), run.metrics.index.name) == ([1, 2, 3, 4], "step")
    np.testing.assert_array_equal(run.series("a"), [np.nan, 2.0, 3.0, np.inf])
    assert run.series("b").index.tolist() == [3]
    assert (run.series("early").to_dict(), run.series("late").to_dict()) == ({1: 7.0}, {4: 1.0})
    assert {key: steps.tolist() for key, steps in run.non_finite.items()} == {"a": [1, 4], "b": [3]}
    before.write_text("")
    assert load_run(path, with_parent_rows=True).metrics.index.tolist() == [3, 4]


def test_numbers_of_a_spike_are_read_as_they_are_spelled(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", [{"step": 1}], events=[spike("a", 1) | {"height": "inf", "sigmas": "-Infinity"}])
    (event,) = load_run(path).events
    assert (event["height"], event["sigmas"]) == (np.inf, -np.inf)
    (path / "events.jsonl").write_text(json.dumps(spike("a", 1) | {"height": "high"}))
    with pytest.raises(InputError, match="line 1: the height of the spike"):
        load_run(path)


@pytest.mark.parametrize("torn", ['{"step": 3, "a": 0.', '{"st', '{"step": 3, "a": "Na\n'])
def test_a_torn_last_line_is_left_out(tmp_path: Path, torn: str) -> None:
    path = write_run(tmp_path / "r", [{"step": 1, "a": 1.0}, {"step": 2, "a": 2.0}])
    for name in ("metrics.jsonl", "events.jsonl"):
        with (path / name).open("a") as file:
            file.write(torn)
    run = load_run(path)
    assert run.metrics.index.tolist() == [1, 2]
    assert run.events == []


def test_a_torn_line_elsewhere_names_file_and_line(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", [{"step": 1}])
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "a\n{"step": 3}\n')
    with pytest.raises(InputError) as error:
        load_run(path)
    assert f"{path / 'metrics.jsonl'} line 2" in one_line(error)


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"a": 1.0}, "line 2"),
        ({"step": "2"}, "line 2"),
        ({"step": 2, "a": "none"}, "step 2"),
        ({"step": 2, "a": [1]}, "a is"),
    ],
)
def test_a_row_that_is_no_row_is_named(tmp_path: Path, row: dict[str, object], named: str) -> None:
    path = write_run(tmp_path / "r", [{"step": 1, "a": 1.0}])
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=named):
        load_run(path)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "status.json"])
@pytest.mark.parametrize("content", [None, "", "{]"])
def test_a_half_written_run_is_one_line(tmp_path: Path, name: str, content: str | None) -> None:
    path = write_run(tmp_path / "r", [{"step": 1}])
    (path / name).unlink()
    if content is not None:
        (path / name).write_text(content)
    with pytest.raises(InputError) as error:
        load_run(path)
    assert str(path) in one_line(error)
    assert ";" in one_line(error)  # and what to do


def test_bad_runs_end_a_command_with_a_line_each_and_status_2(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    broken = write_run(tmp_path / "broken", [])
    good = write_run(tmp_path / "good", [{"step": 1}])
    out = tmp_path / "out"
    done = called(summary.main, tmp_path / "none", tmp_path / "empty", good, broken, "--out", out)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["error"] * 3
    assert str(tmp_path / "none") in lines[0]
    assert str(tmp_path / "empty") in lines[1]
    assert str(broken / "metrics.jsonl") in lines[2]
    assert not out.exists()


def checkpoint(folder: Path, *, weights: bool = True) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    if weights:
        (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_the_last_complete_checkpoint_is_the_runs(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", [{"step": 1}])
    with pytest.raises(InputError, match="no complete checkpoint"):
        resolve_checkpoint(path)
    checkpoint(path / "checkpoints" / "step_00000900")
    last = checkpoint(path / "checkpoints" / "step_00001000")
    checkpoint(path / "checkpoints" / "step_00002000", weights=False)
    checkpoint(path / "checkpoints" / ".step_00003000.tmp")
    assert resolve_checkpoint(path) == last
    assert resolve_checkpoint(last) == last
    assert run_directory(last) == path
    assert load_run(last).name == "r"


def test_the_checkpoints_of_a_run_are_the_complete_ones_by_step(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", [{"step": 1}])
    assert checkpoints_of(path) == []
    later = checkpoint(path / "checkpoints" / "step_100000000")
    earlier = checkpoint(path / "checkpoints" / "step_00000050")
    checkpoint(path / "checkpoints" / "step_00000060", weights=False)
    checkpoint(path / "checkpoints" / "step_00000070.tmp")
    assert checkpoints_of(path) == [(50, earlier), (100_000_000, later)]


@pytest.mark.parametrize(("text", "state"), [('{"step": 3}', {"step": 3}), ('{"st', {}), ("[1]", {}), (None, {})])
def test_the_state_of_a_checkpoint_is_what_can_be_read(
    tmp_path: Path, text: str | None, state: dict[str, object]
) -> None:
    path = checkpoint(tmp_path / "model")
    if text is not None:
        (path / "trainer_state.json").write_text(text)
    assert checkpoint_state(path) == state


def test_a_checkpoint_from_elsewhere_belongs_to_no_run(tmp_path: Path) -> None:
    alone = checkpoint(tmp_path / "model")
    assert resolve_checkpoint(alone) == alone
    with pytest.raises(InputError, match="belongs to no run"):
        run_directory(alone)


def test_arms_that_share_a_name_are_told_apart(tmp_path: Path) -> None:
    first = write_run(tmp_path / "x" / "r", [{"step": 1}])
    second = write_run(tmp_path / "y" / "r", [{"step": 1}])
    third = write_run(tmp_path / "s", [{"step": 1}])
    assert list(load_runs([first, second, third])) == [str(first), str(second), "s"]
    assert unique_labels(["r", "r", "r"], ["p", "p", "q"]) == ["p", "p (2)", "q"]

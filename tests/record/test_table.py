from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import InputError
from record import table as rows_of_files
from record.table import Table, json_lines, read_table

Row = dict[str, Any]
WORDS = ("NaN", "Infinity", "-Infinity", "nan", "NAN", "-nan", "inf", "INF", "+inf", "-Inf", "+Infinity", "-infinity")
VALUES = st.one_of(
    st.floats(-(2.0**100), 2.0**100, width=32),
    st.floats(-1e38, 1e38),
    st.integers(-(10**20), 10**20),
    st.sampled_from([*WORDS, 0.1, 1e-320, 5e-324, -0.0, 2**53 + 1, 0.30000000000000004]),
)
EXTRAS = ("validation/nll", "attention/layer_00/max", "attention/layer_01/max", 'odd, "key": {')


@st.composite
def files(draw: st.DrawFn) -> list[Row]:
    """Rows as programs write them: the same keys at every step, some more at some, several rows of a step, nulls."""
    steps = draw(st.lists(st.integers(0, 60), min_size=1, max_size=80))
    names = [f"metric_{i}" for i in range(draw(st.integers(0, 4)))]
    rows = []
    for step in steps:
        kept = [name for name in (*names, *EXTRAS) if draw(st.integers(0, 5)) == 0]
        kept = kept if draw(st.integers(0, 3)) == 0 else [*names, *kept[len(names) :]]
        rows.append({"step": step} | {name: draw(VALUES) for name in dict.fromkeys(kept)})
        if draw(st.integers(0, 20)) == 0:
            rows[-1] |= dict.fromkeys(EXTRAS[:2])
    return rows


def expected(rows: list[Row]) -> dict[int, Row]:
    """By step, the last value of each key that any row of the step has one for."""
    by_step: dict[int, Row] = {}
    for row in rows:
        values = {k: float(v) if isinstance(v, str) else v for k, v in row.items() if v is not None}
        by_step.setdefault(values.pop("step"), {}).update(values)
    return by_step


def check(table: Table, rows: list[Row], *, foreign: bool = False) -> None:
    by_step = expected(rows)
    assert table.steps.tolist() == sorted(by_step)
    names = {name for row in rows for name, value in row.items() if value is not None or not foreign}
    assert set(table.columns) == names - {"step"}
    for name, column in table.columns.items():
        values = [float(by_step[step].get(name, math.nan)) for step in table.steps.tolist()]
        np.testing.assert_array_equal(column, values)
        assert table.written(name).tolist() == [name in by_step[step] for step in table.steps.tolist()]
        odd = [step for step in sorted(by_step) if not math.isfinite(by_step[step].get(name, 0.0))]
        assert table.non_finite.get(name, np.array([])).tolist() == odd


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(rows=files(), size=st.sampled_from([1, 300, 2000, 2**20]), end=st.sampled_from(["", "\n", "\n\n"]))
def test_all_numbers_are_those_of_the_lines_to_the_bit(tmp_path: Path, rows: list[Row], size: int, end: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_of_files, "BLOCK_BYTES", size)
        check(read_table(path), rows)
        check(read_table(path, foreign=True), rows, foreign=True)
        assert [row for _, row in json_lines(path)] == rows


def run_rows(count: int) -> list[Row]:
    """Of three kinds, two of which have as many values as each other."""
    values = np.random.default_rng(0).normal(size=(count, 4)).tolist()
    kinds = [("a", "b"), ("a", "b", "c"), ("a", "b", "d")]
    return [{"step": step + 1} | dict(zip(kinds[step % 3], row, strict=False)) for step, row in enumerate(values)]


def lines(rows: list[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_values_may_all_be_spelled_out(tmp_path: Path) -> None:
    rows = [{"step": i, "a": "NaN", "b": WORDS[i % len(WORDS)]} for i in range(100)]
    (tmp_path / "metrics.jsonl").write_text(lines(rows))
    check(read_table(tmp_path / "metrics.jsonl"), rows)


def test_rows_of_training_and_evaluation_of_the_same_steps_are_one(tmp_path: Path) -> None:
    rows = [row for i in range(300) for row in ({"step": i, "a": i / 7}, {"step": i, "b": i / 3})]
    (tmp_path / "metrics.jsonl").write_text(lines(rows))
    table = read_table(tmp_path / "metrics.jsonl")
    assert table.columns["a"].tolist() == [i / 7 for i in range(300)]
    assert table.columns["b"].tolist() == [i / 3 for i in range(300)]


@pytest.mark.parametrize("word", ["İnf", "infinite", "na", "n\u0430n", " nan", "1.5", ""])
def test_other_words_are_no_numbers_in_any_row(tmp_path: Path, word: str) -> None:
    rows = [{"step": i, "a": word, "b": 1.0} for i in range(100)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "log.jsonl").write_text(text)
    assert list(read_table(tmp_path / "log.jsonl", foreign=True).columns) == ["b"]
    with pytest.raises(InputError, match=r"a is .*, not a number"):
        read_table(tmp_path / "log.jsonl")


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ('"a, b": 1', {"a, b": 1.0}),
        ('"a": 1, "a": 2', {"a": 2.0}),
        ('"a":1.5 ,\t"b" : -0.0\r', {"a": 1.5, "b": -0.0}),
        ('"a": NaN, "b": -Infinity', {"a": math.nan, "b": -math.inf}),
        (f'"a": {2**70}, "b": -{2**64}', {"a": 2.0**70, "b": -(2.0**64)}),
        ('"a": 1, "b": "\\ud800"', {"a": 1.0}),
        (f'"a": 1, "b": 1{"0" * 400}', {"a": 1.0}),
        (f'"a": 1, "b": {"[" * 20_000}{"]" * 20_000}', None),
        (f'"a": 1, "b": {"[" * 900}{"]" * 900}', {"a": 1.0}),
    ],
)
def test_a_row_may_be_written_in_any_way_that_python_reads(
    tmp_path: Path, row: str, columns: dict[str, float] | None
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"step": 4, "c": 0.5}}\n{{"step": 5, {row}}}\n{{"step": 6, "c": 1}}\n')
    if columns is None:
        with pytest.raises(InputError, match="line 2 is torn"):
            read_table(path, foreign=True)
        return
    table = read_table(path, foreign=True)
    assert table.steps.tolist() == [4, 5, 6]
    assert set(table.columns) == {"c", *columns}
    np.testing.assert_array_equal(table.columns["c"], [0.5, math.nan, 1.0])
    for name, value in columns.items():
        assert json.dumps(table.columns[name][1]) == json.dumps(value)  # -0.0 is not 0.0
        assert table.written(name).tolist() == [False, True, False]


BAD = {
    "torn in a number": '{"step": 500, "a": 1.5, "b": 2.',
    "torn before the end": '{"step": 500, "a": 1.5, "b": 2.5',
    "torn in a key": '{"step": 500, "a": 1.5, "b',
    "two in one line": '{"step": 500, "a": 1.5, "b": 2.5}{"step": 501, "a": 1.5, "b": 2.5}',
    "other key": '{"step": 500, "A": 1.5, "b": 2.5, "e": }',
    "comma for a colon": '{"step": 500, "a", 1.5, "b": 2.5}',
    "colon for a comma": '{"step": 500: "a": 1.5, "b": 2.5}',
    "no step": '{"a": 1.5, "b": 2.5}',
    "step is no whole number": '{"step": 500.5, "a": 1.5, "b": 2.5}',
    "step is negative": '{"step": -1, "a": 1.5, "b": 2.5}',
    "step is too large": '{"step": 9223372036854775808, "a": 1.5, "b": 2.5}',
    "text": '{"step": 500, "a": "x", "b": 2.5}',
    "truth": '{"step": 500, "a": true, "b": 2.5}',
    "a list": '{"step": 500, "a": [1.5], "b": 2.5}',
    "an object": '{"step": 500, "a": {"c": 1.5}, "b": 2.5}',
    "more than a float32": '{"step": 500, "a": 1e39, "b": 2.5}',
    "zeros": "\0" * 40,
    "no number in UTF-8": '{"step": 500, "a": \u0664, "b": 2.5}',
    "no number nor UTF-8": '{"step": 500, "a": \udcff, "b": 2.5}',
    "ended otherwise": '{"step": 500, "a": 1.5, "b": 2.5]',
    "not UTF-8": '{"step": 500, "\udcff": 1.5, "b": 2.5}',
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("place", [0, 100, 299])
def test_a_line_that_is_wrong_is_named_wherever_it_stands(tmp_path: Path, name: str, place: int) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [json.dumps(row) for row in run_rows(300)]
    rows.insert(place, BAD[name])
    path.write_text("\n".join(rows) + "\n", errors="surrogateescape")
    with pytest.raises(InputError) as error:
        read_table(path)
    (problem,) = error.value.problems
    assert f"{path} line {place + 1} " in problem or f"{path} step 500: a is " in problem


def test_the_first_of_two_wrong_lines_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [json.dumps(row) for row in run_rows(300)]
    rows[40], rows[200] = rows[40][:-1], rows[200][:-3]
    path.write_text("\n".join(rows))
    with pytest.raises(InputError, match="line 41 "):
        read_table(path)


@pytest.mark.parametrize(
    "text",
    [
        '{"step": 1}, {"step": 2}\n{"step": 3\n"a": 1}',
        '{"step": 1, "a": [{"b": 1}\n{"b": 2}]}\n{"step": 2}, {"step": 3}',
        '{"step": 1, "a": "}\n{"}\n{"step": 2}, {"step": 3}',
        '{"step": 1, "}\n{": 1}\n{"step": 2}, {"step": 3, "}": 1}',
        '{"step": 1, "a": 1}, {"step": 2}\n{"step": 3}\n{"step": 4}',
    ],
)
def test_lines_that_are_objects_only_when_they_are_joined_are_torn(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{text}\n")
    assert orjson.loads("[" + text.replace("\n", ",") + "]")
    with pytest.raises(InputError, match="line 1 is torn"):
        read_table(path)


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("torn", ['{"step": 500, "a": 1.5, "b": 2.', '{"step": 500, "a": 1.5, "b": 2.5', "{"])
def test_a_torn_last_line_of_many_is_left_out(tmp_path: Path, torn: str, end: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(run_rows(300)) + torn + end)
    check(read_table(path), run_rows(300))


def test_what_is_no_number_is_passed_over_in_a_foreign_file(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    rows = [{"step": float(i), "a": i / 7, "phase": "train", "ok": True, "n": None} for i in range(100)]
    path.write_text(lines(rows).replace(": NaN", ": null"))
    table = read_table(path, foreign=True)
    assert table.steps.tolist() == list(range(100))
    assert list(table.columns) == ["a"]
    assert table.columns["a"].tolist() == [i / 7 for i in range(100)]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"global_step": 1, "epoch": 0.5, "loss": 2.0}, "has no 'step', only global_step, epoch, loss; rename the key"),
        ({}, "has no 'step'; number the rows"),
        ({"step": "7", "loss": 2.0}, "has \"7\" under 'step'; write a whole number there"),
        ({"step": 7.5, "loss": 2.0}, "has 7.5 under 'step'"),
        ({"step": None, "loss": 2.0}, "has null under 'step'"),
        ({"step": [7], "loss": 2.0}, "has a list under 'step'"),
    ],
)
def test_a_row_without_a_step_says_what_it_has_instead(tmp_path: Path, row: Row, told: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(lines([{"step": 1, "loss": 2.0}, row]))
    with pytest.raises(InputError) as error:
        read_table(path, foreign=True)
    (problem,) = error.value.problems
    assert f"{path} line 2 {told}" in problem


def test_rows_with_equally_many_but_different_keys(tmp_path):
    rows = [{"step": 1, "a": 0.5}, {"b": 2.5, "step": 2}, {"step": 3, "a": "NaN"}, {"step": 4}, {"step": 5, "c": None}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = read_table(path)
    assert list(table.columns) == ["a", "b", "c"]
    np.testing.assert_array_equal(table.columns["a"], [0.5, np.nan, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(table.columns["b"], [np.nan, 2.5, np.nan, np.nan, np.nan])
    assert {name: steps.tolist() for name, steps in table.non_finite.items()} == {"a": [3]}

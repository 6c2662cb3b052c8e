from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from analysis.show.tables import WIDTH, markdown_table, terminal_table
from analysis.summary import formatted, main, summarise
from record.finished import load_runs

from .written import spike, write_run


@pytest.fixture
def arms(tmp_path: Path) -> list[Path]:
    """Two runs of 40 steps (the last 5% are two steps) whose summary can be worked out by hand."""
    rows = [
        {"step": s, "tokens": 128 * s, "loss/nll": 9.0 - s / 10, "throughput/tokens_per_second": 100.0 + s % 3}
        | {"hidden_norm/pre_final/mean": float(s), "embedding_norm/mean": 0.5}
        for s in range(1, 41)
    ]
    for step, nll in ((10, 8.0), (20, 5.5), (30, 5.0), (40, 5.25)):
        rows[step - 1]["validation/nll"] = nll
    linear = write_run(tmp_path / "linear", rows, config={"head": {"kind": "linear"}, "objective": {"kind": "ce"}})
    for row in rows:
        row |= {"tfsd/weight_mean": row["step"] / 100, "loss/nll": row["loss/nll"] + 1}
    rows[39] |= {"validation/nll": 6.0}
    rows[4] |= {"grad_norm/total": "Infinity"}
    config = {"head": {"kind": "metric", "scale": 0.5}, "objective": {"kind": "tfsd"}}
    events = [spike("loss/nll", 20), spike("loss/nll", 30), spike("grad_norm/total", 20)]
    others = [{"event": "rise"}, {"event": "saturated"}, {"event": "saturated"}]
    return [linear, write_run(tmp_path / "metric", rows, events=events + others, config=config, status="diverged")]


def test_values_are_those_worked_out_by_hand(arms: list[Path]) -> None:
    linear, metric = summarise(load_runs(arms))
    assert linear == {
        "arm": "linear",
        "head": "linear",
        "objective": "ce",
        "scale": None,
        "steps": 40,
        "tokens": 5120,
        "train_nll": pytest.approx((5.1 + 5.0) / 2),
        "validation_nll": 5.25,
        "best_validation_nll": 5.0,
        "validation_nll_difference": 0.0,
        "status": "finished",
        "rises": None,
        "stalls": None,
        "saturated": None,
        "nll_spikes": 0,
        "gradient_spikes": 0,
        "stressed": None,
        "non_finite": 0,
        "residual_norm_first": 1.0,
        "residual_norm_last": 40.0,
        "embedding_norm_last": 0.5,
        "tfsd_weight": None,
        "tokens_per_second": 101.0,
    }
    assert metric["scale"] == "0.5"
    assert metric["validation_nll_difference"] == pytest.approx(0.75)
    assert (metric["nll_spikes"], metric["gradient_spikes"], metric["non_finite"]) == (2, 1, 1)
    assert (metric["rises"], metric["stalls"], metric["saturated"]) == (1, None, 2)
    assert metric["tfsd_weight"] == pytest.approx(0.395)
    assert metric["status"] == "diverged"


def test_the_steps_at_which_a_stress_acted_are_counted(tmp_path: Path) -> None:
    rows = [{"step": step, "loss/nll": 2.0, "stress/acting": max(0, step - 7)} for step in range(1, 11)]
    run = write_run(tmp_path / "stressed", rows)
    header, cells = formatted(summarise(load_runs([run])))
    assert dict(zip(header, cells[0], strict=True))["stressed"] == "3"


def test_columns_that_no_run_has_are_left_out(arms: list[Path]) -> None:
    assert "mean c" not in formatted(summarise(load_runs(arms[:1])))[0]
    assert "Δ val" not in formatted(summarise(load_runs(arms[:1])))[0]
    assert {"mean c", "Δ val"} <= set(formatted(summarise(load_runs(arms)))[0])


def test_what_the_runs_differ_in_is_said_with_its_values(
    arms: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"step": 1, "loss/nll": 2.0}]
    same = {"train": {"steps": 1}, "data": {"kind": "text", "cache_dir": "a"}, "output_dir": "x"}
    paths = []
    for name, lr, head, cache in (
        ("low", 0.001, {"kind": "linear"}, "a"),
        ("high", 0.003, {"kind": "metric", "scale": 0.5}, "b"),
        ("wide", 0.003, {"kind": "metric", "scale": 1.0}, "b"),
    ):
        config = same | {
            "optimizer": {"lr": lr, "beta1": 0.9},
            "head": head,
            "data": {"kind": "text", "cache_dir": cache},
        }
        paths.append(str(write_run(tmp_path / name, rows, config=config)))
    main([*paths, "--out", str(tmp_path / "out")])
    keys = (
        "optimizer.lr (0.001 | 0.003 | 0.003)",
        "head.kind (linear | metric | metric)",
        "head.scale (- | 0.5 | 1.0)",
    )
    for text in (capsys.readouterr().out, (tmp_path / "out" / "summary.md").read_text()):
        told = " ".join(text.partition("The runs differ in: ")[2].partition(".\n")[0].split())
        assert sorted(told.split("; ")) == sorted(keys)
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["differing"]
    assert found["optimizer.lr"] == [0.001, 0.003, 0.003] and found["head.scale"] == [None, 0.5, 1.0]
    main(paths[1:2])
    assert "differ" not in capsys.readouterr().out
    main(
        [paths[1], str(write_run(tmp_path / "twin", rows, config=config | {"head": {"kind": "metric", "scale": 0.5}}))]
    )
    assert "The runs differ in: no key of their configurations." in capsys.readouterr().out


def test_a_diverged_tail_is_not_a_number_but_the_best_value_is(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "loss/nll": 2.0, "validation/nll": 2.0},
        {"step": 2, "loss/nll": "NaN", "validation/nll": "NaN"},
    ]
    path = write_run(tmp_path / "r", rows, status="diverged")
    main([str(path), "--out", str(tmp_path / "out")])
    text = (tmp_path / "out" / "summary.json").read_text()
    (row,) = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not strict JSON"))["runs"]
    assert (row["train_nll"], row["validation_nll"], row["best_validation_nll"]) == ("NaN", "NaN", 2.0)


def test_the_files_agree_with_the_printed_table(
    arms: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main([*map(str, arms), "--out", str(out)])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[:-1])) <= WIDTH
    assert "last 5%" in printed
    with (out / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    saved = json.loads((out / "summary.json").read_text())
    assert [row["arm"] for row in rows] == ["linear", "metric"]
    assert float(rows[1]["train_nll"]) == saved["runs"][1]["train_nll"]
    assert set(rows[0]) == set(saved["columns"])
    table = (out / "summary.md").read_text().splitlines()
    assert len({line.count("|") for line in table[:4]}) == 1
    assert "6.0500" in table[3]
    assert "6.0500" in printed


def test_a_wide_table_is_cut_into_blocks_that_repeat_the_first_column() -> None:
    header = ["arm", *(f"column{i}" for i in range(10))]
    text = terminal_table(header, [["one", *"0123456789"], ["two", *"abcdefghij"]], width=40)
    assert max(map(len, text.splitlines())) <= 40
    blocks = text.split("\n\n")
    assert [block.splitlines()[1][:3] for block in blocks] == ["one"] * len(blocks)
    assert " ".join(text.split()).count("column") == 10
    assert markdown_table(["a|b"], [["c"]]) == "| a\\|b |\n| --- |\n| c |\n"

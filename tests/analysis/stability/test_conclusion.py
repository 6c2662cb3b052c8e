"""The table that closes a report, and the words better and worse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.show.tables import WIDTH
from analysis.stability.__main__ import as_text, main
from analysis.stability.compare import ALL_MEASURES, COMMON, study
from analysis.stability.conclusion import conclusions, short_table
from analysis.stability.runs import find_runs
from record.suite import PlannedRun, SuitePlan, write_plan
from tests.analysis.written import Row, write_run

from .made import config, curve

SEEDS = (0, 1, 2, 3)
LEVELS = {"base": {0.01: 4.0, 0.1: 5.0}, "bad": {0.01: 4.5, 0.1: 6.0}, "better": {0.01: 3.8, 0.1: 3.9}}


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Three arms at two rates, calm and hit at the lower one. Runs of "bad" stall when hit and are not back."""
    folder, plan = tmp_path / "suite", []
    for arm, levels in LEVELS.items():
        for seed in SEEDS:
            for rate, level in levels.items():
                plan.append(PlannedRun(f"{arm}_calm_{rate}_s{seed}", arm, "calm", rate, seed))
                rows = curve(seed, level)
                rows[-1]["validation/nll"] += 0.001 * ((7 * seed + len(arm)) % 5)
                write_run(folder / plan[-1].name, rows, config=config(seed, rate, head={"kind": arm}))
            plan.append(PlannedRun(f"{arm}_hit_s{seed}", arm, "hit", 0.01, seed))
            events: list[Row] = [{"event": "stall", "step": 50}] if arm == "bad" else []
            rows = curve(seed, levels[0.01], bump=1.0)
            if arm == "bad":
                rows = [row | {"loss/nll": row["loss/nll"] + (row["step"] >= 50)} for row in rows]
            own = config(seed, 0.01, head={"kind": arm}, stress=[{"kind": "x"}])
            write_run(folder / plan[-1].name, rows, config=own, events=events)
    write_plan(folder, SuitePlan("base", None, tuple(plan)))
    return folder


def test_each_arm_is_better_or_worse_in_each_measure(suite: Path) -> None:
    found = study(find_runs([str(suite)]))
    columns = {column.key: column.cells for column in conclusions(found)}
    keys = ["final_nll", "sensitivity", "stable_to", "spikes_nll", "excess", "survived", "hit/survived", "hit/back"]
    assert list(columns) == keys
    assert {arm: columns["final_nll"][arm].verdict for arm in LEVELS} == {
        "base": "",
        "bad": "worse",
        "better": "better",
    }
    assert columns["sensitivity"]["bad"].verdict == "worse in all"  # half a nat in every seed
    assert [columns["stable_to"][arm] for arm in LEVELS] == [
        ("0.01", ""),
        ("0.01", ""),
        ("0.1", ""),
    ]  # rates, no verdicts
    assert columns["survived"]["bad"] == ("8/8", "too few seeds")  # 2 * 2 * 0.5^4 is above 0.05
    # One run a seed: McNemar's test cannot show it with four seeds, but all four differ.
    assert columns["hit/survived"]["bad"] == ("0/4", "worse in all")
    assert columns["hit/back"]["bad"] == ("0/4", "worse in all")
    assert columns["hit/survived"]["better"] == ("4/4", "too few seeds")


def test_it_ends_what_is_printed_and_is_in_all_files(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(suite), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    table = short_table(study(find_runs([str(suite)])))
    assert table is not None
    text = as_text(table)
    assert printed.partition(text)[2].strip().startswith("written to")
    assert printed.count("\n\n") < 12
    assert max(map(len, text.splitlines())) <= WIDTH
    assert table.rows[0][:2] == ["base", "4.0170"]
    bad = dict(zip(table.header[:7], table.rows[1], strict=False))
    assert (bad["arm"], bad["final NLL"], bad["stable to"], bad["survived"]) == ("bad", "worse", "0.01", "8/8 -")
    assert "## In short\n" in (tmp_path / "out" / "stability.md").read_text(encoding="utf-8")
    in_json = json.loads((tmp_path / "out" / "stability.json").read_text(encoding="utf-8"))["in_short"]
    assert in_json["final_nll"]["better"] == {"value": "3.8165", "verdict": "better"}


def test_one_seed_and_one_arm_conclude_nothing(tmp_path: Path) -> None:
    for arm in ("base", "other"):
        write_run(tmp_path / arm, curve(0, 4.0 if arm == "base" else 3.0), config=config(0, head={"kind": arm}))
    both = study(find_runs([str(tmp_path / arm) for arm in ("base", "other")]))
    assert conclusions(both)[0].cells["other"].verdict == "too few seeds"
    assert short_table(study(find_runs([str(tmp_path / "base")]))) is None


def test_a_verdict_says_which_side_is_good() -> None:
    said = {key: [ALL_MEASURES[key].verdict(side) for side in ("lower", "higher")] for key in ("final_nll", "back")}
    assert said == {"final_nll": ["better", "worse"], "back": ["worse", "better"]}
    assert ALL_MEASURES["effective_rate"].verdict("lower") == "lower"
    assert ALL_MEASURES["final_nll"].verdict("no difference shown; one of 2 would be").startswith("no difference")


def test_verdicts_of_rows_and_shares_are_in_these_words(suite: Path) -> None:
    found = study(find_runs([str(suite)]))
    assert {row.arm: row.verdict for row in found.rows("calm", COMMON, "final_nll")} == {
        "bad": "worse",
        "better": "better",
    }
    assert [one.verdict for one in found.shares("diverged", "hit")] == ["", "too few seeds", "too few seeds"]
    assert [one.verdict for one in found.shares("survived", "hit")] == ["", "worse in all", "too few seeds"]

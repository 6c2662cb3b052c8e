"""The pages of results/ are what their summaries and templates give, and --check finds those that are not."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from analysis.results import load_studies, main, markdown_tables, number, out_of_date, pick, rendered, row
from analysis.show.tables import markdown_table
from common.errors import InputError
from tests.conftest import ROOT

STUDIES = load_studies(ROOT)
VALUES = [
    (name, part, value)
    for name, study in STUDIES.items()
    for part, output in study.collect.items()
    for value in output.values
]
LONGEST = 40
"""Lines of a page."""
STUDY = """
title: Coins
question: Is the coin fair?
verdict: "Heads in {{ tosses['share'] | number('.0%') }} of tosses | tails in the rest."
source: measured
date: 2026-11-29
machine: a table
seeds: [0]
configs: []
commands: [python toss.py]
collect:
  tosses: {file: runs/tosses.json, values: [share, arms.gain]}
  coins: {file: runs/coins.md, values: [coin]}
"""
PAGE = """# {{ title }}: {{ verdict }}

{{ table(coins.coin) }}

Gains: {% for gain in tosses["arms.gain"] %}{{ gain | number("+.1f") }} {% endfor %}in all.
"""


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository's own results in a folder that is the current one."""
    shutil.copytree(ROOT / "results", tmp_path / "results")
    shutil.copy(ROOT / "RESULTS.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def coins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of one measured page, with the output of its commands; the current folder is its root."""
    folder = tmp_path / "results" / "coins"
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(STUDY)
    (folder / "page.md.j2").write_text(PAGE)
    (tmp_path / "results" / "RESULTS.md.j2").write_text('{{ line["coins"] }}\n')
    (tmp_path / "runs").mkdir()
    tosses = {"share": 0.5, "arms": [{"gain": -0.25, "name": "a"}, {"gain": 1.0, "name": "b"}]}
    (tmp_path / "runs" / "tosses.json").write_text(json.dumps(tosses))
    table = markdown_table(["coin", "heads"], [["penny", "3"], ["dime", "4"]])
    (tmp_path / "runs" / "coins.md").write_text(f"Before\n\n{table}\nAfter\n")
    monkeypatch.chdir(tmp_path)
    return folder


def changed(value: Any) -> Any:
    """``value`` with every number and text in it changed."""
    if isinstance(value, dict):
        return {key: changed(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [changed(entry) for entry in value]
    if isinstance(value, bool):
        return not value
    return f"{value}9" if isinstance(value, str) else (value or 0) + 1


def changed_table(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The same rows, by whose names a page finds them, with every other cell changed."""
    return [changed(each) | dict([next(iter(each.items()))]) for each in rows]


def test_every_page_and_the_index_are_what_the_command_renders() -> None:
    pages = rendered(ROOT)
    assert out_of_date(pages) == []
    assert {ROOT / "results" / name / "README.md" for name in STUDIES} | {ROOT / "RESULTS.md"} <= pages.keys()


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_short_and_says_what_it_asked_found_and_ran(name: str) -> None:
    page = (ROOT / "results" / name / "README.md").read_text(encoding="utf-8")
    study = STUDIES[name]
    assert len(page.splitlines()) <= LONGEST
    assert study.question.endswith("?")
    assert f"- **Question:** {study.question}\n- **Verdict:** " in page
    assert all(command in page for command in study.commands)
    assert all((ROOT / config).is_file() for config in study.configs)


def test_links_of_pages_lead_somewhere() -> None:
    pages = [ROOT / "RESULTS.md", *(ROOT / "results").rglob("*.md")]
    broken = [
        f"{page}: {link}"
        for page in pages
        for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists()
    ]
    assert broken == []


@pytest.mark.parametrize(("name", "part", "value"), VALUES)
def test_a_changed_number_is_found(
    name: str,
    part: str,
    value: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "results" / name
    shutil.copytree(ROOT / "results" / name, folder)
    shutil.copy(ROOT / "results" / "head.md.j2", folder.parent)
    (folder.parent / "RESULTS.md.j2").write_text(f"{{{{ line['{name}'] }}}}")
    monkeypatch.chdir(tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    found = summary[part][value]
    if value == "tables" and isinstance(found, dict):  # by title
        summary[part][value] = {title: changed_table(rows) for title, rows in found.items()}
    else:
        table = STUDIES[name].collect[part].file.endswith(".md")
        summary[part][value] = changed_table(found) if table else changed(found)
    (folder / "summary.json").write_text(json.dumps(summary))
    assert main(["--check"]) == 1
    assert f"results/{name}/" in capsys.readouterr().out


def test_a_row_is_found_by_its_name_or_missed_aloud() -> None:
    rows = [{"coin": "penny", "heads": "3"}, {"coin": "dime", "heads": "4"}]
    assert row(rows, "dime")["heads"] == "4"
    with pytest.raises(ValueError, match="no row of the table is called 4"):
        row(rows, "4")


def test_check_names_what_was_edited_or_lost_and_writes_nothing(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0
    edited, lost = copy / "results" / "scale" / "README.md", copy / "results" / "loop" / "README.md"
    edited.write_text(edited.read_text().replace("6.3391", "6.3392"))
    lost.unlink()
    capsys.readouterr()
    assert main(["--check"]) == 1
    told = "is not what its template and summary give"
    assert capsys.readouterr().out == f"results/loop/README.md: {told}\nresults/scale/README.md: {told}\n"
    assert not lost.exists()
    assert main([]) == 0
    assert main(["--check"]) == 0
    assert edited.read_bytes() == (ROOT / "results" / "scale" / "README.md").read_bytes()


def test_a_summary_is_collected_and_rendered(coins: Path) -> None:
    assert main(["--collect", "coins"]) == 0
    expected = {
        "tosses": {"share": 0.5, "arms.gain": [-0.25, 1.0]},
        "coins": {"coin": [{"coin": "penny", "heads": "3"}, {"coin": "dime", "heads": "4"}]},
    }
    assert json.loads((coins / "summary.json").read_text()) == expected
    verdict = "Heads in 50% of tosses | tails in the rest."
    table = "| coin | heads |\n| --- | ---: |\n| penny | 3 |\n| dime | 4 |"
    assert (
        coins / "README.md"
    ).read_text() == f"# Coins: {verdict}\n\n{table}\n\nGains: \N{MINUS SIGN}0.2 +1.0 in all.\n"
    cells = ("[Coins](results/coins/README.md)", "Is the coin fair?", verdict.replace("|", "\\|"), "measured")
    assert Path("RESULTS.md").read_text() == f"| {' | '.join(cells)} |\n"


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("results/coins/study.yaml", STUDY.replace("[python toss.py]", "[]"), "study.yaml: commands: List should have"),
        ("results/coins/study.yaml", STUDY.replace("source: measured", "source: typed"), "source is typed"),
        ("results/coins/study.yaml", "a: [", "study.yaml is no YAML"),
        ("results/coins/study.yaml", STUDY.replace("share, ", ""), "summary.json does not have the values"),
        ("results/coins/summary.json", "{", "summary.json is no JSON"),
        (
            "results/coins/page.md.j2",
            "{{ nowhere }}",
            "results/coins/page.md.j2 cannot be rendered: 'nowhere' is undefined",
        ),
        ("results/coins/page.md.j2", "{% if %}", "results/coins/page.md.j2 cannot be rendered"),
        ("results/RESULTS.md.j2", "nothing", "has no line for coins"),
    ],
)
def test_what_cannot_be_rendered_is_told(file: str, text: str, problem: str, coins: Path) -> None:
    main(["--collect", "coins"])
    Path(file).write_text(text)
    with pytest.raises(InputError, match=re.escape(problem)):
        main(["--check"])


def test_what_cannot_be_collected_is_told(coins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("runs/tosses.json").write_text('{"share": 1}')
    with pytest.raises(InputError, match=r"tosses.json has no 'arms', which study.yaml collects"):
        main(["--collect", "coins"])
    Path("runs/tosses.json").write_text("{")
    with pytest.raises(InputError, match=r"tosses.json is damaged .*; run the study's commands again"):
        main(["--collect", "coins"])
    Path("runs/tosses.json").unlink()
    with pytest.raises(InputError, match=r"tosses.json cannot be read .*; run the study's commands first"):
        main(["--collect", "coins"])
    with pytest.raises(InputError, match=r"results/dice/study.yaml cannot be read"):
        main(["--collect", "dice"])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"run this in the root of the repository"):
        main([])


def test_entries_are_chosen_by_a_key_that_some_lack_but_not_all() -> None:
    events = [{"event": "begun"}, {"signal": "loss", "height": 2.0}, {"signal": "norm", "height": 3.0}]
    assert pick(events, ["signal=loss", "height"]) == [2.0]
    with pytest.raises(KeyError, match="sigal"):
        pick(events, ["sigal=loss", "height"])


def test_tables_are_read_as_they_were_printed() -> None:
    first = markdown_table(["a", "b"], [["1.50", ""], ["x", "2 / 3"]])
    second = markdown_table(["c"], [["\N{MINUS SIGN}1"]])
    assert markdown_tables(f"{first}\nText\n\n{second}") == {
        "a": [{"a": "1.50", "b": ""}, {"a": "x", "b": "2 / 3"}],
        "c": [{"c": "\N{MINUS SIGN}1"}],
    }


def test_numbers_have_a_minus_sign() -> None:
    assert [number(-0.25, "+.2f"), number(1250, ",d")] == ["\N{MINUS SIGN}0.25", "1,250"]

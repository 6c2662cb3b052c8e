from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.reproduce.__main__ import main
from benchmarks.reproduce.base import FINDINGS, Finding, Outcome, Verdict, finding, in_order, load_findings
from benchmarks.reproduce.table import keep, write_report
from benchmarks.reproduce.train import complete, cpu_minutes, train_runs
from common.errors import InputError
from tests.conftest import called, python

TINY = """
name: tiny
data: {kind: text, paths: [%s], cache_dir: %s, vocab_size: 300, sequence_length: 16, validation_fraction: 0.1}
body: {model_type: gpt2, n_layer: 1, n_head: 1, n_embd: 8, resid_pdrop: 0.0, embd_pdrop: 0.0, attn_pdrop: 0.0}
head: {kind: linear}
objective: {kind: ce}
optimizer: {lr: 1.0e-3, schedule: {kind: constant}}
train: {steps: 3, batch_size: 2, eval_every: 100, eval_sequences: 2}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Sentence {i} of a text that says {i * i} things." for i in range(400)))
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY % (text, tmp_path / "cache"))
    return file


def test_every_finding_says_what_it_is_and_what_must_come_out() -> None:
    for key, cls in load_findings().items():
        assert key == cls.key
        assert cls.title and cls.source and cls.claim
        assert "\n" not in cls.claim
        assert "eproduced if" in (cls.__doc__ or ""), f"the docstring of {key} does not state its rule"


def test_findings_are_in_the_order_of_their_numbers() -> None:
    assert sorted(["A10", "A9", "A9b", "A27"], key=in_order) == ["A9", "A9b", "A10", "A27"]


def test_a_key_that_is_taken_or_is_none_is_refused() -> None:
    load_findings()
    with pytest.raises(ValueError, match="A9 is already the key of AdamSpike"):
        finding(type("Other", (Finding,), {"key": "A9"}))
    with pytest.raises(ValueError, match="'spike' is no key"):
        finding(type("Other", (Finding,), {"key": "spike"}))
    assert "spike" not in FINDINGS


def test_runs_are_trained_once_and_other_settings_under_the_same_name_are_refused(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train_runs({"seed0/a": ["seed=0"], "seed1/a": ["seed=1"]}, recipe, out)
    rows = (out / "seed0/a/metrics.jsonl").read_bytes()
    taken = json.loads((out / "cpu_seconds.json").read_text())
    assert set(taken) == {"seed0/a", "seed1/a"} and all(seconds > 0 for seconds in taken.values())
    train_runs({"seed0/a": ["seed=0"]}, recipe, out)
    assert (out / "seed0/a/metrics.jsonl").read_bytes() == rows
    assert json.loads((out / "cpu_seconds.json").read_text()) == taken
    with pytest.raises(InputError, match="trained with other settings"):
        train_runs({"seed0/a": ["seed=0", "optimizer.lr=2.0e-3"]}, recipe, out)


class Branching(Finding):
    """Reproduced if the branch took the steps after its parent's."""

    key = "Z1"
    title, source, claim = "Runs may branch", "none", "a branch goes on"

    def runs(self):
        return {"parent": ["checkpoint.every=2"], "branch": ["branch_from=$RUNS/parent@2", "train.steps=4"]}

    def measure(self, seed, overrides):
        return {"seed": seed, "overrides": list(overrides)}

    def judge(self, seeds):
        steps = [list(seed.runs["branch"].metrics.index) for seed in seeds]
        good = steps == [[3, 4]] * len(seeds)
        return Outcome(Verdict.REPRODUCED if good else Verdict.NOT_REPRODUCED, f"{steps}", [{"Z1": "1", "it": "2"}])


def test_a_finding_gets_its_runs_and_what_it_measured_by_seed(recipe, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.reproduce.train.RECIPE", recipe)
    made = Branching()
    for _ in range(2):  # the second time from the files
        seeds = complete(made, 2, tmp_path / "out", ["train.batch_size=4"])
        assert [seed.number for seed in seeds] == [0, 1]
        assert seeds[1].measured == {"seed": 1, "overrides": ["train.batch_size=4"]}
        assert [seed.runs["parent"].setting("train", "batch_size") for seed in seeds] == [4, 4]
        assert made.judge(seeds).verdict == Verdict.REPRODUCED
    assert cpu_minutes(made, 2, tmp_path / "out") > cpu_minutes(made, 1, tmp_path / "out") > 0


def test_the_report_has_every_finding_that_was_judged_and_the_last_outcome_of_each(tmp_path: Path) -> None:
    one, other = FINDINGS["A9"](), Branching()
    keep(other, Outcome(Verdict.NOT_REPRODUCED, "came out", [{"Z1": "x", "it": "7"}]), 3, 12.3, tmp_path)
    keep(one, Outcome(Verdict.NOT_REPRODUCED, "nothing"), 1, 0.25, tmp_path)
    keep(one, Outcome(Verdict.REPRODUCED, "everything"), 1, 0.25, tmp_path)
    text = write_report(tmp_path)
    assert "nothing" not in text and "everything | reproduced | 1 | 0.25 |" in text
    assert "came out | not reproduced | 3 | 12 |" in text
    assert text.index("| A9 |") < text.index("| Z1 |") < text.index("| x | 7 |")
    written = json.loads((tmp_path / "reproduce.json").read_text())
    assert [row["verdict"] for row in written["findings"]] == ["reproduced", "not reproduced"]
    assert written["tables"] == [[], [{"Z1": "x", "it": "7"}]]


def test_the_command_judges_a_finding_and_writes_its_row(tmp_path: Path) -> None:
    done = python("-m", "benchmarks.reproduce", "A9", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "A9: reproduced: 3 of 4 arms cross the threshold, after 377" in done.stdout
    assert "| A9 |" in (tmp_path / "reproduce.md").read_text()


def test_a_wrong_key_or_number_of_seeds_is_told_in_a_line(tmp_path: Path) -> None:
    done = called(main, "A9", "B1", "--out", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: B1: no such finding; there are ")
    assert len(done.stderr.splitlines()) == 1
    done = called(main, "A9", "--seeds", "0", "--out", tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: --seeds 0: a finding needs at least one seed\n")

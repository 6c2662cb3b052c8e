"""The parts of the autopsy's benchmark; the autopsy itself is tested on runs in tests/analysis/autopsy."""

import json
import math
import re
from dataclasses import asdict

import pytest

from analysis.autopsy.conclude import Evidence
from benchmarks.autopsy import CONCLUSIONS, PLANTED, concluded_from, hide_stress, matrix, spike_near
from common.files import write_json
from configs.load import load_config
from tests.analysis.written import spike, training_rows, write_run


def test_the_matrix_counts_what_was_concluded():
    def told(planted, concluded):
        return {"planted": planted, "cause": PLANTED[planted].cause, "concluded": concluded, "steps_taken": 9}

    cases = [
        told("random tokens", "data"),
        told("random tokens", "hardware"),
        told("rate x10, 5 steps", "not decided"),
        told("moments exchanged", None),
        told("last norm x6", "output logits"),
    ]
    found = matrix(cases)
    every, new = found["totals"]
    assert every == {
        "kinds": "all",
        "planted": 5,
        "spiked": 4,
        "right": 2,
        "undecided": 1,
        "wrong": 1,
        "median steps": 9,
    }
    assert (new["planted"], new["right"]) == (1, 1), "rules were not made for this kind"
    assert found["faults"][0] == {
        "planted": "random tokens",
        "new": "",
        "cause": "data",
        **dict.fromkeys(CONCLUSIONS, 0),
        "data": 1,
        "hardware": 1,
    }
    assert found["faults"][2]["no spike"] == 1
    assert found["causes"][0] == {"cause": "data", **dict.fromkeys(CONCLUSIONS, 0), "data": 1, "hardware": 1}
    assert [row["cause"] for row in found["causes"]] == ["data", "rate too high", "optimizer state", "output logits"]


def test_every_planted_fault_is_a_valid_stress(workspace):
    for name, fault in PLANTED.items():
        planted = re.sub(r"sequences: 1[26]", "sequences: 8", fault.stress.format(step=12, code=__file__))
        config = load_config(
            workspace / "tiny.yaml", [f"stress=[{{{planted}}}]" if planted else "stress=[]", *fault.overrides]
        )
        assert [stress.options["step"] for stress in config.stress] == [12] * bool(planted), name


def test_a_hidden_fault_leaves_no_trace(tmp_path):
    run = write_run(
        tmp_path / "run", [row | {"stress/acting": 1} for row in training_rows(30)], events=[spike("loss/nll", 21)]
    )
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": "stress_began", "written_at": 20, "step": 20}) + "\n")
    (run / "config.yaml").write_text("name: x\nstress:\n- kind: scale_weights\n  step: 3\ninterventions: []\n")
    hide_stress(run)
    assert (run / "config.yaml").read_text() == "name: x\nstress: []\ninterventions: []\n"
    assert "stress" not in (run / "metrics.jsonl").read_text() + (run / "events.jsonl").read_text()
    assert spike_near(run, 20, 28) == 1
    assert spike_near(run, 22, 30) is None


def test_conclusions_are_drawn_from_what_was_kept(tmp_path):
    removed = {"without its batches": ("data", 1.0), "half the rate": ("rate too high", -math.inf)}
    evidence = Evidence(None, 20, True, 0.0, removed, math.inf, math.nan, 0.0, 0.0)
    write_json(tmp_path / "case.json", {"spiked": True, "evidence": asdict(evidence)})
    assert concluded_from(json.loads((tmp_path / "case.json").read_text())) == "data"
    assert concluded_from({"spiked": False}) is None
    with pytest.raises(KeyError):
        concluded_from({"concluded": "data"})

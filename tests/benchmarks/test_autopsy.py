"""The parts of the autopsy's benchmark; the autopsy itself is tested on runs in tests/analysis/autopsy."""

import json

from benchmarks.autopsy import CONCLUSIONS, PLANTED, hide_stress, matrix, spike_near
from configs.load import load_config
from tests.analysis.written import spike, training_rows, write_run


def test_the_matrix_counts_what_was_concluded():
    def told(planted, concluded):
        return {"planted": planted, "cause": PLANTED[planted][0], "concluded": concluded}

    cases = [
        told("random tokens", "data"),
        told("random tokens", "hardware"),
        told("rate x10, 5 steps", "not decided"),
        told("moments exchanged", None),
    ]
    found = matrix(cases)
    assert (found["spiked"], found["right"], found["undecided"], found["wrong"]) == (3, 1, 1, 1)
    assert found["faults"][0] == {
        "planted": "random tokens",
        "cause": "data",
        **dict.fromkeys(CONCLUSIONS, 0),
        "data": 1,
        "hardware": 1,
    }
    assert found["faults"][2]["no spike"] == 1


def test_every_planted_fault_is_a_valid_stress(workspace):
    for name, (_, stress) in PLANTED.items():
        planted = (
            stress.format(step=12, batch=12)
            .replace("sequences: 16", "sequences: 8")
            .replace("sequences: 12", "sequences: 8")
        )
        config = load_config(workspace / "tiny.yaml", [f"stress=[{planted}]"])
        assert config.stress[0].options["step"] == 12, name


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
    assert spike_near(run, 20) == 1
    assert spike_near(run, 22) is None

"""Rows, events and files of the run directory."""

import json
import math

import pytest
import torch

from record.recorder import ALIVE, Recorder
from record.rows import json_line, read_rows
from stability.watch import Watch


def test_every_step_arrives_in_order_whatever_each_step_measured(tmp_path):
    recorder = Recorder(tmp_path, writes=True)
    for step in range(1, 6):
        device = {"loss/nll": torch.tensor(step / 4), ALIVE: torch.tensor(1.0 if step < 5 else math.nan)}
        device |= {"extra": torch.tensor(1.0)} if step == 3 else {}
        recorder.add({"step": step}, device)
    rows, healthy = recorder.transfer()
    assert healthy == 4
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5]
    assert [r["loss/nll"] for r in rows] == [0.25, 0.5, 0.75, 1.0, 1.25]
    assert ["extra" in r for r in rows] == [False, False, True, False, False]
    assert recorder.transfer().rows == []
    recorder.write_rows(rows)
    assert read_rows(tmp_path / "metrics.jsonl") == rows


def test_lines_are_strict_json():
    line = json_line({"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5, "e": [1]})
    assert json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) == {
        **{"a": "NaN", "b": "Infinity", "c": "-Infinity"},
        **{"d": 1.5, "e": [1]},
    }


def test_a_torn_last_line_is_left_out_and_any_other_bad_line_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [r["step"] for r in read_rows(path)] == [1, 2]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2"):
        read_rows(path)


def test_rewinding_drops_what_came_after_the_checkpoint(tmp_path):
    recorder = Recorder(tmp_path, writes=True)
    recorder.write_rows({"step": s} for s in range(1, 11))
    recorder.event("spike", 4, start_step=2)
    recorder.event("spike", 6, start_step=3, closed_by_the_end=True)
    recorder.event("spike", 9, start_step=3)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')
    recorder.rewind(6)
    assert [r["step"] for r in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert [e["written_at"] for e in read_rows(tmp_path / "events.jsonl")] == [4]


def test_only_the_main_process_writes(tmp_path):
    recorder = Recorder(tmp_path / "run", writes=False)
    recorder.write_rows([{"step": 1}])
    recorder.event("spike", 1)
    recorder.status("running", 1)
    recorder.rewind(0)
    assert not (tmp_path / "run").exists()


def test_what_was_not_finite_is_told_with_its_tensors(tmp_path):
    said = []
    watch = Watch(Recorder(tmp_path, writes=True), said.append, "median_mad", ["loss/nll", "grad_norm/total"])
    row = {"step": 2, "loss/nll": 2.0, "loss/objective": 2.0, "grad_norm/total": math.inf}
    watch.report_divergence(row, [f"gradient of p{i}" for i in range(30)], [1], updated=False)
    (event,) = read_rows(tmp_path / "events.jsonl")
    assert (event["event"], event["step"], event["signals"]) == ("non_finite", 2, ["grad_norm/total"])
    assert (len(event["tensors"]), event["tensors_in_all"], event["ranks"]) == (20, 30, [1])
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["status"] == "diverged"
    assert status["reason"].startswith("grad_norm/total is not finite on rank 1 at step 2")
    assert "step 2" in said[0]
    watch.report_divergence(row, ["gradient of p", "parameter of q"], [], updated=True)
    assert "parameter of q is not finite at step 2; after its update" in said[1]


def test_what_was_not_finite_does_not_trouble_a_watch_that_goes_on(tmp_path):
    """An infinite gradient in fp16 is logged as a word; a spike soon after a resume looks back at it."""
    recorder = Recorder(tmp_path, writes=True)
    row = {"loss/nll": 2.0, "loss/objective": 2.0, "grad_norm/total": 1.0, "logit/std": 1.0}
    recorder.write_rows({**row, "step": s, "logit/std": math.inf if s == 90 else 1.0} for s in range(1, 101))
    watch = Watch(recorder, lambda _: None, "median_mad", ["loss/nll", "grad_norm/total"])
    watch.look([{**row, "step": s} for s in range(1, 101)], drew=lambda step: step)
    state = watch.state()
    watch.restore(state, 100)
    watch.look(
        [{**row, "step": s, "loss/nll": 9.0 if s < 104 else 2.0} for s in range(101, 110)], drew=lambda step: step
    )
    (event,) = [e for e in read_rows(tmp_path / "events.jsonl") if e["event"] == "spike"]
    assert (event["start_step"], event["end_step"]) == (101, 103)
    assert all(type(p["first_step"]) is int for p in event["precursors"])

"""What TensorBoard shows of a run that is killed, goes on, and goes back: metrics.jsonl."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.conftest import events_of

from .conftest import REWINDING


def test_tensorboard_shows_a_run_that_is_killed_and_goes_back_as_it_became(start, tmp_path):
    """It goes back from step 49 to 40, and is killed when rows 51 to 56 are there and the last checkpoint is that of step 50."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = tmp_path / "run"
    assert start(run, *REWINDING, "trackers=[tensorboard]", step=58, signals=["SIGKILL"]).signal == "SIGKILL"
    ended = start(run, *REWINDING, "trackers=[tensorboard]")
    assert ended.status == 0, ended.output
    assert [e["event"] for e in events_of(run) if e["event"] in ("resume", "rewind")] == ["rewind", "resume"]

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    shown = accumulator.EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    assert set(shown.Tags()["scalars"]) == {name for row in rows for name in row} - {"step"}
    for name in shown.Tags()["scalars"]:
        expected = [(row["step"], np.float32(row[name])) for row in rows if name in row]
        assert [(s.step, np.float32(s.value)) for s in shown.Scalars(name)] == expected, name

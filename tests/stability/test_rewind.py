"""Rewinding: what is decided, and real runs that go back, are killed on the way, and agree."""

import json
import math
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState

from analysis.replay import __main__ as replay
from configs.load import load_config
from record.checkpoints import delete, list_checkpoints, step_of
from record.rewinds import RewindEvent, last_rewind
from record.rows import read_rows
from stability.detect.catalogue import make_detector
from stability.detect.events import Alarm
from stability.intervene.rewind import RewindOnSpike, decide
from tests.conftest import events_of, rows_of
from train_lm import train

FAULT = "stress=[{kind: corrupt_sequences, step: 85, steps: 3, sequences: 8, pattern: random}]"
REWINDING = ["name=rewound", FAULT, "interventions=[{kind: rewind}]"]
LONG = ["train.steps=110", "checkpoint.every=20", "train.eval_every=20"]


@pytest.fixture
def start(recipe):
    return lambda *overrides: trained(recipe["path"], *recipe["overrides"], *overrides)


def trained(path, *overrides):
    AcceleratorState._reset_state(reset_partial_state=True)
    config = load_config(path, [*LONG, *overrides])
    return train(config), Path(config.output_dir) / config.name


@pytest.fixture(scope="module")
def rewound(workspace, tmp_path_factory):
    """A run that meets the fault and goes back."""
    status, run = trained(workspace / "tiny.yaml", f"output_dir={tmp_path_factory.mktemp('rewound')}", *REWINDING)
    assert status == 0
    return run


def checkpoints(run, *steps):
    for step in steps:
        folder = run / "checkpoints" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        for name in ("trainer_state.json", "manifest.json"):
            (folder / name).write_text("{}")


POLICY = RewindOnSpike(RewindOnSpike.Options(min_sigmas=10.0, margin=2, most=2))
SPIKE = Alarm("loss/nll", 57, 60, 12.0)


def wishes(alarms):
    wish = POLICY.on_alarms(alarms)
    return [] if wish is None else [wish]


def test_the_checkpoint_before_the_spike_and_the_batches_around_it(tmp_path):
    checkpoints(tmp_path, 20, 40, 60)
    back = decide(wishes([SPIKE]), None, [], step=70, run=tmp_path)
    assert (back.number, back.from_step, back.to_step, back.skipped) == (1, 70, 40, [[55, 62]])


def test_what_the_checkpoint_has_seen_is_not_skipped(tmp_path):
    checkpoints(tmp_path, 56)
    assert decide(wishes([SPIKE]), None, [], step=70, run=tmp_path).skipped == [[57, 62]]


def test_batches_are_counted_past_those_left_out_already(tmp_path):
    checkpoints(tmp_path, 40)
    last = RewindEvent(1, 30, 20, [[21, 30]], {})
    back = decide(wishes([SPIKE]), last, [[1, 5]], step=70, run=tmp_path)
    assert back.skipped == [[21, 30], [57 + 15 - 2, 60 + 15 + 2]]
    assert back.number == 2
    assert decide(wishes([SPIKE]), back, [], step=70, run=tmp_path) is None, "two rewinds were the most"


@pytest.mark.parametrize(
    ("alarm", "goes_back"),
    [
        (Alarm("loss/nll", 57, 60, 9.9), False),
        (Alarm("grad_norm/total", 57, 60, 99.0), False),
        (Alarm("non_finite", 57, 57, math.inf), True),
    ],
)
def test_what_a_run_goes_back_for(alarm, goes_back, tmp_path):
    back = decide(wishes([alarm]), None, [], step=70, run=tmp_path)
    assert (back is not None) == goes_back
    assert back is None or back.to_step == 0, "without a checkpoint, to the start"


def test_a_run_goes_back_and_never_meets_the_spike_again(rewound, start):
    (back,) = [e for e in events_of(rewound) if e["event"] == "rewind"]
    assert back["to_step"] == 80
    assert back["cause"]["signal"] == "loss/nll"
    (skipped,) = back["skipped"]
    assert skipped[0] <= 85
    assert skipped[1] >= 87
    rows = rows_of(rewound)
    assert [r["step"] for r in rows] == list(range(1, 111))
    assert not {r["data/batch"] for r in rows} & set(range(85, 88))
    assert not [e for e in events_of(rewound) if e["event"] == "spike" and e["signal"] == "loss/nll"]
    abandoned = read_rows(rewound / "abandoned.jsonl")
    met = [r["loss/nll"] for r in abandoned if r["step"] in (85, 86, 87)]
    assert len(met) == 3
    assert min(met) > 1 + max(r["loss/nll"] for r in rows[60:])

    # The same batches skipped from the beginning: the same run, to the bit.
    _, told = start("name=told", FAULT, f"data.skip_steps={[skipped]}")
    assert rows_of(told) == rows


def test_a_rewound_run_that_is_interrupted_goes_on_as_if_it_had_not_been(rewound, start, tmp_path):
    """Killed after the rewind and before the next checkpoint: what it skips is known from the event alone."""
    broken = shutil.copytree(rewound, tmp_path / rewound.name)
    state = json.loads((broken / "status.json").read_text())
    (broken / "status.json").write_text(json.dumps({**state, "status": "running"}))
    for checkpoint in list_checkpoints(broken):
        if step_of(checkpoint) > 80:
            delete(checkpoint)
    lines = (broken / "metrics.jsonl").read_text().splitlines(keepends=True)
    (broken / "metrics.jsonl").write_text("".join(lines[:95]))
    assert start(*REWINDING) == (0, broken)
    assert rows_of(broken) == rows_of(rewound)
    assert last_rewind(broken) == last_rewind(rewound)


def test_the_checkpoint_before_a_spike_stays(start):
    _, run = start("name=kept", FAULT, "checkpoint.every=5", "checkpoint.keep=1", "checkpoint.keep_before_spikes=1")
    (spike,) = [e for e in events_of(run) if e["event"] == "spike" and e["signal"] == "loss/nll"]
    assert spike["start_step"] == 85
    assert spike["checkpoint"] == 80
    assert 80 in {step_of(path) for path in list_checkpoints(run)}
    assert spike["batches"] == [spike["start_step"], spike["end_step"]]
    _, *command = shlex.split(spike["replay"])
    assert command[:2] == ["-m", "analysis.replay"]
    AcceleratorState._reset_state(reset_partial_state=True)
    replay.main(command[2:])
    found = json.loads((run / "replay_85" / "explanation.json").read_text())
    assert (found["step"], found["checkpoint"], found["reproduced"]) == (85, 80, True)
    assert found["spike"]["start_step"] == 85


def test_a_run_never_goes_back_over_checkpoints_that_it_has_pruned(tmp_path):
    """A creep may have begun long before the oldest checkpoint: starting afresh would delete the whole run."""
    checkpoints(tmp_path, 60, 80)
    assert decide(wishes([SPIKE]), None, [], step=90, run=tmp_path) is None


def test_what_may_become_a_spike_keeps_its_checkpoint():
    """The value of step 399 is held as evidence when checkpoint 400 prunes; the spike opens at 400."""
    detector = make_detector("median_mad", "loss/nll")
    noise = 0.01 * np.random.default_rng(0).standard_normal(401)
    for step in range(1, 400):
        detector.update({"step": step, "loss/nll": 3.0 + noise[step] + 0.06 * (step == 399)})
    assert detector.open is None
    assert detector.suspected_since() == 399
    detector.update({"step": 400, "loss/nll": 3.06})
    assert detector.open.start_step == detector.suspected_since() == 399


def test_a_checkpoint_half_deleted_by_a_killed_run_is_in_nobodys_way(tmp_path):
    checkpoints(tmp_path, 20)
    (path,) = list_checkpoints(tmp_path)
    (path.parent / ".step_00000020.old" / "rest").mkdir(parents=True)
    delete(path)
    assert list(path.parent.iterdir()) == []

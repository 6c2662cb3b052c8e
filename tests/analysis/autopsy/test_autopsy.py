"""The command on real runs whose fault is known to the test, and not to the command."""

import json
import re

import pytest
from accelerate.state import AcceleratorState

from analysis.autopsy import __main__ as command
from common.command import exit_status
from configs.load import load_config
from tests.conftest import events_of, rows_of
from train_lm import train

SHORT = [
    "train.steps=70",
    "checkpoint.every=25",
    "checkpoint.keep=9",
    "train.eval_every=100",
    "optimizer.schedule.kind=constant",
]
BASE = ["head={kind: linear}", "objective={kind: ce}"]
RATE = "stress=[{kind: scale_lr, step: 50, steps: 3, factor: 30.0}]"
DATA = "stress=[{kind: corrupt_sequences, step: 50, sequences: 8, pattern: repeated}]"
FAULT = "stress=[{kind: scale_weights, step: 50, parameters: 'wte', factor: 6.0}]"


@pytest.fixture(scope="module")
def start(workspace, tmp_path_factory):
    folder = tmp_path_factory.mktemp("autopsy")

    def trained(name, *overrides):
        if not (folder / name).exists():
            AcceleratorState._reset_state(reset_partial_state=True)
            own = [f"output_dir={folder}", f"name={name}", *SHORT, *BASE, *overrides]
            assert train(load_config(workspace / "tiny.yaml", own)) == 0
        return folder / name

    return trained


def autopsy(run, *options):
    AcceleratorState._reset_state(reset_partial_state=True)
    out = run.parent / "why"
    before = rows_of(run), events_of(run)
    assert exit_status(lambda: command.main([str(run), "--out", str(out), *options])) == 0
    assert (rows_of(run), events_of(run)) == before, "nothing is written to the run"
    page = (out / "page.html").read_text()
    assert "<script" not in page and (out / "figure.png").stat().st_size > 20_000
    return json.loads((out / "autopsy.json").read_text())


def test_a_rate_that_jumped(start, capsys):
    found = autopsy(start("rate", RATE))
    assert found["cause"] == "rate too high"
    assert found["evidence"]["differs_from"] is None
    assert found["evidence"]["removed"]["the rate as before"][1] > 0.75
    assert found["evidence"]["removed"]["without its batches"][1] < 0.5
    assert found["again"] == found["logged"][-len(found["again"]) :]
    told = capsys.readouterr().out
    assert "rate too high" in told and "the rate as before" in told


def test_a_batch_that_is_bad(start):
    found = autopsy(start("data", DATA))
    assert found["cause"] == "data"
    assert found["evidence"]["batch_sigmas"] > 5
    assert found["step"]["sequences"], "the sequences of the step at which it began are described"


def test_a_fault_that_does_not_come_again(start):
    """Somebody changes the weights of a layer behind the run's back: its configuration does not tell, as no hardware's does."""
    run = start("fault", FAULT)
    config = (run / "config.yaml").read_text()
    start_of_stress = config.index("stress:")
    end = config.index("\ninterventions:")
    (run / "config.yaml").write_text(config[:start_of_stress] + "stress: []" + config[end:])
    rows = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(re.sub(r',\s*"stress/acting":\s*\d', "", rows))
    found = autopsy(run, "--step", "51")
    assert found["cause"] == "hardware"
    assert found["evidence"]["differs_from"] in (50, 51)
    assert found["disagreements"][0].startswith(("step 50:", "step 51:"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--step", "999"], "--step 999: the run {run} has logged steps 1 to 70"),
        (["--event", "99"], "--event 99: the run {run} has "),
        (["--step", "3"], "step 3: only 0 logged steps before step 1, where its experiments begin; 8 at least"),
        (
            ["--step", "45"],
            "step 45: loss/nll is not above its usual level there, the median of the 32 steps before and 2 sigmas: ",
        ),
    ],
)
def test_mistakes_are_one_line(start, capsys, options, told):
    run = start("calm")
    capsys.readouterr()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert exit_status(lambda: command.main([str(run), "--out", str(run / "o"), *options])) == 2
    assert told.format(run=run) in capsys.readouterr().err
    assert not (run / "o").exists()

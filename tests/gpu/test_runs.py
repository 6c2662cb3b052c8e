"""Whole runs on the device: what they leave behind, resume, replay, rewind, and bf16 beside float32."""

import json
import math

import pytest
from safetensors.torch import load_file

from common.command import EXIT_PREEMPTED
from record.checkpoints import list_checkpoints, step_of
from record.rows import read_rows
from tests.conftest import ROOT, events_of, rows_of

from .device import DEVICE, HALF, ON_GPU, assert_same_run, python, series, size

LINEAR = ("head={kind: linear}", "objective={kind: ce}")
METRIC = ("head={kind: metric}", "objective={kind: tfsd}")
PROBED = "telemetry.attention_every=5"


def status_of(run):
    return json.loads((run / "status.json").read_text())["status"]


@pytest.mark.parametrize("head", [LINEAR, METRIC], ids=["linear", "metric"])
def test_a_run_is_complete_and_is_replayed(head, runs, tmp_path):
    """train_lm.py in a process of its own; then, of one of them, a step is taken again by the command."""
    run = runs.process("run", *head, PROBED, "train.steps=20", "checkpoint.every=8", "checkpoint.keep=9")
    rows = rows_of(run)
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert status_of(run) == "finished"
    wrong = {
        (row["step"], name): value for row in rows for name, value in row.items() if not isinstance(value, float | int)
    }
    assert not wrong, f"not finite: {wrong}"
    assert all(row.keys() >= rows[0].keys() for row in rows), "every step has every metric"
    assert "attention/logit_max" in rows[4]
    assert "validation/nll" in rows[-1]
    losses = series(run, "loss/nll")
    assert losses[-1] < losses[0] - 0.1, losses
    facts = json.loads((run / "environment.json").read_text())
    assert facts["device"]["type"] == DEVICE, facts
    assert facts["loss_kernel"]["name"] == size("torch", "triton"), facts["loss_kernel"]
    peaks = [row["memory/peak_bytes"] for row in read_rows(run / "metrics.jsonl")]
    state = 4 * 4 * facts["parameters"]  # weights, gradients and both moments in float32
    assert min(peaks) > state, f"peak memory {peaks} with {facts['parameters']} parameters"
    assert [step_of(checkpoint) for checkpoint in list_checkpoints(run)] == [8, 16, 20]
    if head == METRIC:
        out = tmp_path / "why"
        said = python("-m", "analysis.replay", run, "--step", 12, "--out", out)
        found = json.loads((out / "explanation.json").read_text())
        assert found["reproduced"] is True, f"{found['disagreements']}\n{said}"
        assert (found["checkpoint"], found["steps_compared"]) == (8, 4)
        assert (found["tolerance"] == 0.0) == (not ON_GPU), found["tolerance_reason"]
        assert found["device"].partition(":")[0] == DEVICE


@pytest.mark.parametrize("precision", size(["fp32"], ["fp32", "bf16", "fp16"]))
def test_a_stopped_run_goes_on_as_if_it_had_not_been(precision, runs):
    """By a signal between two checkpoints; with dropout, micro-batches and, where it may be, an intervention with a state."""
    options = [
        *METRIC,
        f"train.precision={precision}",
        "body.resid_pdrop=0.1",
        "train.steps=20",
        f"train.micro_batch_size={size(3, 6)}",
    ]
    if precision == "fp32":
        options += [PROBED]
    if precision != "fp16":
        options += ["interventions=[{kind: zclip, warmup: 5, threshold: 1.0}]"]
    plugins = f"plugins=[{ROOT}/tests/gpu/stop_at.py]"
    whole = runs.here("whole", *options, plugins, "stress=[{kind: scale_lr, step: 13, factor: 1.0}]")
    stopping = (*options, plugins, "stress=[{kind: stop, step: 13}]")
    stopped = runs.here("stopped", *stopping, status=EXIT_PREEMPTED)
    assert [row["step"] for row in rows_of(stopped)] == list(range(1, 14))
    assert status_of(stopped) == "preempted"
    assert runs.here("stopped", *stopping) == stopped
    assert [event["event"] for event in events_of(stopped)].count("resume") == 1
    assert_same_run(whole, stopped, None if precision == "fp32" else HALF)
    if not ON_GPU:
        for file in ("model.safetensors", "optimizer.safetensors"):
            a, b = (load_file(list_checkpoints(run)[-1] / file) for run in (whole, stopped))
            assert a.keys() == b.keys()
            assert all(a[name].equal(b[name]) for name in a), file


def test_a_run_goes_back_before_a_planted_spike(runs):
    """It meets bad batches once, leaves them out, and ends as a run that never drew them."""
    fault = f"stress=[{{kind: corrupt_sequences, step: 45, steps: 2, sequences: {size(8, 16)}, pattern: random}}]"
    options = (*METRIC, "train.steps=60", "checkpoint.every=10", "checkpoint.keep=3", "train.eval_every=20", fault)
    run = runs.here("rewound", *options, "interventions=[{kind: rewind, min_sigmas: 5}]")
    backs = [event for event in events_of(run) if event["event"] == "rewind"]
    assert len(backs) == 1, f"{len(backs)} rewinds; events: {events_of(run)}"
    (back,) = backs
    (skipped,) = back["skipped"]
    assert back["to_step"] == 40, back
    assert skipped[0] <= 45, back
    assert skipped[1] >= 46, back
    rows = rows_of(run)
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert status_of(run) == "finished"
    met = [row["loss/nll"] for row in read_rows(run / "abandoned.jsonl") if row["step"] in (45, 46)]
    usual = max(series(run, "loss/nll")[30:])
    assert len(met) == 2, met
    assert min(met) > usual + 0.5, f"the bad batches have {met}, all others at most {usual}"
    told = runs.here("told", *options, f"data.skip_steps={[skipped]}")
    assert_same_run(run, told)


def test_bf16_follows_float32(runs):
    """The same batches and start; the losses stay within what the rounding of products explains.

    bf16 rounds each factor of a product by 2^-9 at most, so a logit of a few nats by some 2^-7 nats, at random: in the mean
    over a step's tokens hardly anything of it is left. What remains is that the weights drift apart. On a CPU, in 200 steps of
    the tiny recipe and two seeds, the mean difference of the last 20 was 0.012 and 0.001 nats, the largest one 0.044.
    """
    steps = size(20, 200)
    options = (*METRIC, f"train.steps={steps}", "checkpoint.every=200", "train.eval_every=200")
    exact, rough = (
        series(runs.here(precision, *options, f"train.precision={precision}"), "loss/nll")
        for precision in ("fp32", "bf16")
    )
    assert all(math.isfinite(x) for x in rough), rough
    differences = [b - a for a, b in zip(exact, rough, strict=True)]
    largest = max(differences, key=abs)
    last = sum(differences[-20:]) / 20
    said = (
        f"losses {exact[0]:.4f} to {exact[-1]:.4f} in float32, {rough[0]:.4f} to {rough[-1]:.4f} in bf16; mean difference of "
        f"the last 20 steps {last:+.5f}, largest {largest:+.5f} at step {differences.index(largest) + 1}"
    )
    assert abs(last) < 0.05, said
    assert abs(largest) < 0.15, said
    assert exact[-1] < exact[0] - 0.1, said

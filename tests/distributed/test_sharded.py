"""FSDP2 through Accelerate: real ranks of train_lm.py (gloo, CPU) that share parameters and moments out among themselves."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from common.command import EXIT_BAD_INPUT, EXIT_DIVERGED, EXIT_PREEMPTED
from model import load_model
from record.checkpoints import list_checkpoints, step_of
from tests.conftest import ROOT, events_of, python, rows_of
from tests.faults.conftest import assert_as_unbroken

from .ranks import Ranks, rows_written, wait_until
from .test_world_sizes import (
    EDGE,
    NEGATIVES,
    OF_TEXT,
    SHARED,
    UNEVEN,
    WHOLE,
    assert_same_curves,
    assert_same_thresholds,
    assert_same_weights,
)

MANY = pytest.mark.faults
PROBED = "telemetry.attention_every=5"


@pytest.fixture
def launch(recipe):
    started = []

    def start(name, *overrides, **options):
        started.append(Ranks(recipe, f"name={name}", *overrides, **options))
        return started[-1]

    yield start
    for ranks in started:
        ranks.kill()


@pytest.fixture
def run(launch):
    def finish(name, *overrides, world_size=2, **options):
        ended = launch(name, *overrides, world_size=world_size, **options).wait()
        assert [status for status, _ in ended] == [0] * world_size, ended

    return finish


@pytest.mark.parametrize(
    ("world_size", "head", "parts"),
    [
        (2, "{kind: metric}", 2),
        pytest.param(2, "{kind: linear, tied: false}", 4, marks=MANY),
        pytest.param(4, "{kind: metric}", 2, marks=MANY),
        (2, "{kind: cosine, learn_scale: true}", 4),  # the second rank has nothing of the scale
        pytest.param(2, "{kind: mixture, components: 2}", 4, marks=MANY),
        pytest.param(2, "{kind: harmonic}", 2, marks=MANY),
        pytest.param(2, "{kind: von_mises_fisher}", 2, marks=MANY),
        pytest.param(2, "{kind: metric, abstain: true, centroid_norm: centred, tied: false}", 4, marks=MANY),
    ],
)
def test_sharded_ranks_follow_one(world_size, head, parts, run, tmp_path):
    """Uneven ranks, several micro-batches, attention probed: the same metrics, events, weights and moments; the tie holds."""
    with_head = (
        UNEVEN,
        PROBED,
        EDGE,
        f"head={head}",
        "objective={kind: tfsd}" if "metric" in head else "objective={kind: ce}",
    )
    run("one", *with_head, world_size=1)
    run("sharded", *with_head, f"train.micro_batch_size={parts // 2}", world_size=world_size, sharded=True)
    assert_same_curves(tmp_path / "one", tmp_path / "sharded", closely=12)
    assert_same_weights(tmp_path / "one", tmp_path / "sharded")
    assert events_of(tmp_path / "sharded") == events_of(tmp_path / "one")
    facts = [json.loads((tmp_path / name / "environment.json").read_text()) for name in ("one", "sharded")]
    assert facts[0]["parameters"] == facts[1]["parameters"]
    assert [fact["sharded"] for fact in facts] == [False, True]
    checkpoint = list_checkpoints(tmp_path / "sharded")[-1]
    model = load_model(checkpoint)
    assert (model.lm_head.weight is model.model.wte.weight) == ("tied: false" not in head)
    assert json.loads((checkpoint / "config.json").read_text())["architectures"] == ["SwapHeadForCausalLM"]


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=MANY)])
def test_sharded_ranks_have_the_negatives_and_the_threshold_of_one(world_size, run, tmp_path):
    short = (*NEGATIVES, "train.steps=20", "train.micro_batch_size=2")
    run("one", *short, world_size=1)
    run("sharded", *short, world_size=world_size, sharded=True)
    assert_same_curves(tmp_path / "one", tmp_path / "sharded", closely=12)
    assert_same_weights(tmp_path / "one", tmp_path / "sharded")
    assert_same_thresholds(tmp_path / "one", tmp_path / "sharded")


@MANY
def test_sharded_ranks_teach_an_auxiliary_head_alike(run, tmp_path):
    """The dual head, which has a second matrix; the teacher is whole on every rank."""
    run("teacher", "train.steps=10", "checkpoint.every=10", world_size=1)
    teacher = list_checkpoints(tmp_path / "teacher")[-1]
    dual = (UNEVEN, EDGE, "head={kind: dual}", f"objective={{kind: dual_head, teacher: {teacher}}}")
    run("one", *dual, world_size=1)
    run("sharded", *dual, "train.micro_batch_size=2", sharded=True)
    assert_same_curves(tmp_path / "one", tmp_path / "sharded", closely=12)
    assert_same_weights(tmp_path / "one", tmp_path / "sharded")


@MANY
@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"sharded": True}, {"sharded": False}),
        ({"sharded": False}, {"sharded": True}),
        ({"sharded": True}, {"world_size": 1}),
        ({"sharded": True}, {"sharded": True, "world_size": 4}),
    ],
    ids=["FSDP2 to DDP", "DDP to FSDP2", "FSDP2 to one process", "two shards to four"],
)
def test_a_run_goes_on_sharded_or_not(first, then, launch, run, tmp_path):
    """Stopped by a signal, gone on the other way with another split into micro-batches: the same order, the same curve."""
    longer = ("train.steps=120", "train.eval_every=60", "checkpoint.every=60")
    run("whole", *longer, world_size=1)
    ranks = launch("moved", *longer, **first)
    wait_until(lambda: rows_written(tmp_path / "moved") > 20, ranks)
    ranks.processes[1].terminate()
    assert [status for status, _ in ranks.wait()] == [EXIT_PREEMPTED] * 2
    stopped = step_of(list_checkpoints(tmp_path / "moved")[-1])
    assert 20 < stopped < 120
    before = rows_of(tmp_path / "moved")
    run("moved", *longer, "train.micro_batch_size=1", **then)
    rows, whole = rows_of(tmp_path / "moved"), rows_of(tmp_path / "whole")
    assert rows[:stopped] == before
    assert [r["data/batch"] for r in rows] == [r["data/batch"] for r in whole]
    for x, y in zip(whole[: stopped + 20], rows, strict=False):
        assert x["loss/nll"] == pytest.approx(y["loss/nll"], rel=2e-3), x["step"]


def test_sharded_ranks_learn_the_level_of_one(run, tmp_path):
    """What an adaptive objective learns from is a mean over all ranks: the same level on each, and in the checkpoint."""
    held = ("objective={kind: tfsd_held, weight: 0.2}", UNEVEN)
    run("one", *held, world_size=1)
    run("sharded", *held, "train.micro_batch_size=1", sharded=True)
    assert_same_curves(tmp_path / "one", tmp_path / "sharded", closely=12)
    states = [load_file(list_checkpoints(tmp_path / n)[-1] / "model.safetensors") for n in ("one", "sharded")]
    assert float(states[1]["objective_state.value"]) == pytest.approx(
        float(states[0]["objective_state.value"]), rel=1e-3
    )


@MANY
def test_a_sharded_run_goes_on_to_the_bit(launch, run, tmp_path):
    """With running statistics, of which every rank has its own and rank 0's count, and an intervention's state."""
    zclip = "interventions=[{kind: zclip, warmup: 5, threshold: 1.0}]"
    longer = (zclip, "train.steps=60", "train.eval_every=60", "checkpoint.every=60", "head.feature_norm=batchnorm")
    run("whole", *longer, sharded=True)
    ranks = launch("moved", *longer, sharded=True)
    wait_until(lambda: rows_written(tmp_path / "moved") > 6, ranks)
    ranks.processes[0].terminate()
    assert [status for status, _ in ranks.wait()] == [EXIT_PREEMPTED] * 2
    run("moved", *longer, sharded=True)
    rows = rows_of(tmp_path / "whole")
    assert rows_of(tmp_path / "moved") == rows
    assert min(row["intervention/zclip/scale"] for row in rows) < 1
    assert_as_unbroken(tmp_path / "moved", tmp_path / "whole")


@MANY
def test_sharded_ranks_go_back_together(run, tmp_path):
    fault = "stress=[{kind: corrupt_sequences, step: 65, steps: 3, sequences: 8, pattern: random}]"
    long = ["train.steps=80", "checkpoint.every=20", "interventions=[{kind: rewind}]"]
    run("rewound", fault, *long, sharded=True)
    (back,) = [e for e in events_of(tmp_path / "rewound") if e["event"] == "rewind"]
    assert (back["to_step"], back["skipped"]) == (60, [[65, 67]])
    rows = rows_of(tmp_path / "rewound")
    assert [r["data/batch"] for r in rows[60:70]] == [61, 62, 63, 64, 68, 69, 70, 71, 72, 73]
    assert max(r["loss/nll"] for r in rows[60:]) < 6


@MANY
def test_a_bad_number_in_one_rank_s_share_stops_all_before_the_update(launch, tmp_path):
    """A row of the embedding that the second rank holds: named, and never in a checkpoint."""
    program = tmp_path / "spoilt.py"
    program.write_text(
        f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch.distributed as dist
import train_lm
import training.loop
step_taken = training.loop.training_step
def training_step(run, step):
    if step == 15 and dist.get_rank() == 1:
        run.bare_model().model.wte.weight.to_local().data[3] = float("inf")
    step_taken(run, step)
training.loop.training_step = training_step
raise SystemExit(train_lm.exit_status(train_lm.main))
"""
    )
    ended = launch("run", sharded=True, program=[program]).wait()
    assert [status for status, _ in ended] == [EXIT_DIVERGED] * 2, ended
    (event,) = [e for e in events_of(tmp_path / "run") if e["event"] == "non_finite"]
    assert event["step"] == 15
    assert "parameter of model.wte.weight" in event["tensors"], event
    assert [step_of(c) for c in list_checkpoints(tmp_path / "run")] == [10]


@MANY
@pytest.mark.parametrize("sharded", [False, True], ids=["DDP", "FSDP2"])
def test_bf16_means_the_same_on_several_ranks(sharded, run, tmp_path):
    """Rounded products alone differ: what one rank computes in one part, two compute in four."""
    run("one", "train.precision=bf16", "train.steps=10", world_size=1)
    run("two", "train.precision=bf16", "train.steps=10", "train.micro_batch_size=2", sharded=sharded)
    a, b = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    for name in ("loss/nll", "grad_norm/total", "hidden_norm/pre_final/mean", "param_norm/embedding"):
        # One rounding of bf16 is 0.4%.
        assert [r[name] for r in b] == pytest.approx([r[name] for r in a], rel=4e-3), name
    weights = load_file(list_checkpoints(tmp_path / "two")[-1] / "model.safetensors")
    assert {str(tensor.dtype) for tensor in weights.values()} == {"torch.float32"}


@MANY
@pytest.mark.parametrize("sharded", [False, True], ids=["DDP", "FSDP2"])
def test_a_compiled_body_follows_an_eager_one(sharded, run, tmp_path):
    run("eager", PROBED, sharded=sharded)
    run("compiled", PROBED, "train.compile=true", sharded=sharded)
    assert_same_curves(tmp_path / "eager", tmp_path / "compiled", closely=12)
    assert_same_weights(tmp_path / "eager", tmp_path / "compiled")


@MANY
def test_the_launch_file_shards_over_two_processes(recipe, tmp_path):
    file = ROOT / "configs/launch/cpu_2proc_fsdp2.yaml"
    command = ("-m", "accelerate.commands.launch", "--config_file", file, ROOT / "train_lm.py")
    options = (*recipe["overrides"], "name=filed", "train.steps=10")
    done = python(*command, "--config", recipe["path"], *options, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "filed" / "environment.json").read_text())["sharded"] is True


@MANY
@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ({"FSDP_VERSION": "1"}, "sharding needs FSDP2; set fsdp_version: 2"),
        (
            {"FSDP_ACTIVATION_CHECKPOINTING": "true"},
            "FSDP_ACTIVATION_CHECKPOINTING=true: set train.gradient_checkpointing=true instead of",
        ),
        (
            {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4: gradients are accumulated by train.micro_batch_size",
        ),
    ],
)
def test_a_launch_that_shards_or_accumulates_in_another_way_is_refused(asked, answer, launch, tmp_path):
    ended = launch("run", sharded=True, **asked).wait()
    assert [status for status, _ in ended] == [2, 2]
    assert f"error: launch: {answer}" in ended[0][1]
    assert not (tmp_path / "run").exists()


@MANY
def test_sharded_ranks_share_the_stresses_of_one(run, tmp_path):
    faults = (f"stress=[{SHARED}, {OF_TEXT}]", "train.steps=15")
    run("one", *faults, world_size=1)
    run("sharded", *faults, sharded=True)
    assert_same_curves(tmp_path / "one", tmp_path / "sharded", closely=12)


@MANY
@pytest.mark.parametrize("kind", WHOLE)
def test_a_stress_of_whole_tensors_is_refused_for_shards(kind, launch):
    ended = launch("refused", f"stress=[{WHOLE[kind]}]", sharded=True).wait()
    assert [status for status, _ in ended] == [EXIT_BAD_INPUT] * 2
    assert f"stress.0.kind: {kind} cannot act on sharded parameters; launch without FSDP2" in str(ended)

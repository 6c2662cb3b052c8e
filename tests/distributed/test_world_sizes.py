"""Runs of one, two and four ranks are one run: the same curves, the same weights; and one may go on as another."""

from __future__ import annotations

import shutil

import pytest
from safetensors.torch import load_file

from common.command import EXIT_BAD_INPUT, EXIT_PREEMPTED
from model import load_model
from record.checkpoints import list_checkpoints, step_of
from tests.conftest import events_of, rows_of

from .ranks import Ranks, rows_written, wait_until

UNEVEN = "stress=[{kind: corrupt_sequences, step: 5, steps: 20, sequences: 5, pattern: ignored}]"
"""Of eight sequences five have no targets: on several ranks the first ones have none at all, or one."""
EDGE = "telemetry.edge_every=4"
NEGATIVES = (
    "negatives={kind: shuffled, share: 0.4, loss: hinge, margin: 20.0}",
    "checkpoint.unknown_fpr=0.2",
    "telemetry.edge_every=4",
)
"""Three of eight sequences: on two ranks one, and two."""

SHARED = (
    "{kind: small_batch, step: 1, steps: 2, sequences: 4}, {kind: short_sequences, step: 2, steps: 2, parts: 4}, "
    "{kind: label_noise, step: 3, share: 0.5}, {kind: optimizer_settings, step: 4, beta2: 0.8, eps: 1.0e-6}, "
    "{kind: scale_weights, step: 5, parameters: embedding, factor: 1.2}, {kind: half_parameters, step: 6}, "
    "{kind: stale_moments, step: 7, what: swap}, {kind: stale_moments, step: 8, what: reset}, "
    "{kind: dead_rank, step: 9, ranks: 8, rank: 5}"
)
"""Stresses that may act on sharded parameters, too."""
OF_TEXT = "{kind: corrupt_sequences, step: 10, sequences: 5, pattern: shuffled}"
WHOLE = {
    "gradient_noise": "{kind: gradient_noise, step: 10, factor: 0.5}",
    "flip_bit": "{kind: flip_bit, step: 11, what: parameter, bit: 24}",
}
"""Stresses that may not."""


@pytest.fixture
def run(recipe):
    def start(name, world_size, *overrides):
        ranks = Ranks(recipe, f"name={name}", *overrides, world_size=world_size)
        try:
            ended = ranks.wait()
        finally:
            ranks.kill()
        assert [status for status, _ in ended] == [0] * world_size, ended

    return start


def assert_same_curves(one, other, *, closely):
    """All metrics within rounding for the first ``closely`` steps, after which training has made more of it; then the loss."""
    a, b = rows_of(one), rows_of(other)
    assert [r["step"] for r in a] == [r["step"] for r in b]
    for x, y in zip(a, b, strict=True):
        names = {name for name in x if not name.startswith("noise/")}  # which only several micro-batches show
        assert names == {name for name in y if not name.startswith("noise/")}
        for name in names - {"tfsd/weight_p10"} if x["step"] <= closely else ():
            assert x[name] == pytest.approx(y[name], rel=2e-4, abs=1e-5), (name, x["step"])
        assert x["loss/nll"] == pytest.approx(y["loss/nll"], rel=1e-3), x["step"]


def assert_same_weights(one, other):
    a, b = (load_file(list_checkpoints(r)[-1] / "model.safetensors") for r in (one, other))
    assert a.keys() == b.keys()
    assert all(a[name].allclose(b[name], rtol=1e-3, atol=1e-4) for name in a)


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.faults)])
def test_uneven_ranks_count_every_token_alike(world_size, run, tmp_path):
    run("one", 1, UNEVEN, EDGE)
    run("many", world_size, UNEVEN, EDGE, "train.micro_batch_size=2")
    assert_same_curves(tmp_path / "one", tmp_path / "many", closely=12)  # seven steps with uneven ranks
    assert_same_weights(tmp_path / "one", tmp_path / "many")
    assert events_of(tmp_path / "many") == events_of(tmp_path / "one")


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.faults)])
def test_ranks_share_the_stresses_of_one(world_size, run, recipe, tmp_path):
    foreign = f"{{kind: foreign_text, step: 11, sequences: 5, paths: [{recipe['path'].parent / 'text'}]}}"
    every = (f"stress=[{SHARED}, {OF_TEXT}, {foreign}, {', '.join(WHOLE.values())}]", "train.steps=15")
    run("one", 1, *every)
    run("many", world_size, *every)
    assert_same_curves(tmp_path / "one", tmp_path / "many", closely=12)
    assert events_of(tmp_path / "many") == events_of(tmp_path / "one")


def assert_same_thresholds(one, other):
    a, b = (load_model(list_checkpoints(r)[-1]).config for r in (one, other))
    assert a.unknown_fpr == b.unknown_fpr == 0.2
    assert a.unknown_distance == pytest.approx(b.unknown_distance, rel=1e-3)


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.faults)])
def test_ranks_share_the_negatives_of_one(world_size, run, tmp_path):
    """And calibrate one threshold. Some micro-batches have no negative, others nothing else."""
    run("one", 1, *NEGATIVES)
    run("many", world_size, *NEGATIVES, "train.micro_batch_size=1")
    assert_same_curves(tmp_path / "one", tmp_path / "many", closely=12)
    assert_same_weights(tmp_path / "one", tmp_path / "many")
    assert_same_thresholds(tmp_path / "one", tmp_path / "many")
    assert all(row["negative/active"] > 0 for row in rows_of(tmp_path / "one"))


@pytest.mark.faults
def test_a_small_batch_must_be_shared_out_evenly(recipe):
    ranks = Ranks(recipe, "name=uneven", "stress=[{kind: small_batch, step: 5, sequences: 3}]", world_size=2)
    try:
        ended = ranks.wait()
    finally:
        ranks.kill()
    assert [status for status, _ in ended] == [EXIT_BAD_INPUT] * 2
    assert "stress.0.sequences: 3 is not a multiple of the number of processes, 2" in str(ended)


@pytest.mark.faults
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 4), (4, 2)])
def test_a_run_goes_on_with_another_number_of_ranks(before, after, run, recipe, tmp_path):
    """And with another split into micro-batches: the same order of sequences, the same curve."""
    longer = ("train.steps=400", "train.eval_every=200", "checkpoint.every=200")
    run("whole", 1, *longer)
    ranks = Ranks(recipe, "name=moved", *longer, world_size=before)
    wait_until(lambda: rows_written(tmp_path / "moved") > 20, ranks)
    ranks.processes[0].terminate()
    assert [status for status, _ in ranks.wait()] == [EXIT_PREEMPTED] * before
    stopped = step_of(list_checkpoints(tmp_path / "moved")[-1])
    assert 20 < stopped < 400
    shutil.copytree(tmp_path / "moved", tmp_path / "kept")
    run("moved", after, *longer, "train.micro_batch_size=1")
    rows = rows_of(tmp_path / "moved")
    assert rows[:stopped] == rows_of(tmp_path / "kept")
    whole = rows_of(tmp_path / "whole")
    assert [r["data/batch"] for r in rows] == [r["data/batch"] for r in whole]
    for x, y in zip(whole[: stopped + 20], rows, strict=False):
        assert x["loss/nll"] == pytest.approx(y["loss/nll"], rel=2e-3), x["step"]

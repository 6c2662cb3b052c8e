"""FSDP2 with a single rank: the path of sharded runs, on one device."""

import json
import socket

import pytest

from common.command import EXIT_PREEMPTED
from record.checkpoints import list_checkpoints, step_of
from tests.conftest import ROOT, rows_of
from tests.distributed.ranks import SHARDED

from .device import HALF, assert_same_run, size

TOLERANCE = 1e-3
"""Sharded and unsharded runs add in another order: what a replay on another number of processes is allowed."""


def alone():
    """The variables by which a launcher tells the only process of a launch who it is."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return where | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}


def facts_of(run):
    return json.loads((run / "environment.json").read_text())


@pytest.mark.parametrize("precision", size(["fp32"], ["fp32", "bf16"]))
def test_one_rank_shards_and_follows_the_unsharded_run(precision, runs):
    options = (
        f"train.precision={precision}",
        f"telemetry.attention_every={5 if precision == 'fp32' else 'null'}",
        "train.steps=20",
        f"train.micro_batch_size={size(4, 8)}",
    )
    plain = runs.here("plain", *options)
    sharded = runs.process("sharded", *options, **alone(), **SHARDED)
    assert [facts_of(run)["sharded"] for run in (plain, sharded)] == [False, True]
    assert [facts_of(run)["device"] for run in (plain, sharded)] == [facts_of(plain)["device"]] * 2
    assert_same_run(plain, sharded, TOLERANCE if precision == "fp32" else HALF)


def test_a_sharded_run_goes_on_unsharded(runs):
    options = ("train.steps=20", f"plugins=[{ROOT}/tests/gpu/stop_at.py]")
    stopping = (*options, "stress=[{kind: stop, step: 13}]")
    runs.process("moved", *stopping, status=EXIT_PREEMPTED, **alone(), **SHARDED)
    moved = runs.folder / "moved"
    assert facts_of(moved)["sharded"] is True
    assert [step_of(path) for path in list_checkpoints(moved)][-1] == 13
    runs.here("moved", *stopping)
    assert facts_of(moved)["sharded"] is False
    assert [row["step"] for row in rows_of(moved)] == list(range(1, 21))
    plain = runs.here(
        "plain", *options, "stress=[{kind: scale_lr, step: 13, factor: 1.0}]"
    )  # it acts, and does nothing
    assert_same_run(plain, moved, TOLERANCE)

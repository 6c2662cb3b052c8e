"""A rank that dies, hangs or fails: the others end within the limit and name it, and the same command goes on."""

from __future__ import annotations

import json
import signal
import textwrap
import time

import numpy as np
import pytest

from common.command import EXIT_DIVERGED, EXIT_PREEMPTED, EXIT_RANK_LOST
from record.checkpoints import list_checkpoints, step_of
from tests.conftest import events_of, rows_of
from tests.faults.conftest import assert_as_unbroken

from .ranks import Ranks, rows_written, wait_until

LONG = ("train.steps=100000", "train.stall_seconds=6", "telemetry.flush_every=5", "train.eval_every=1000")


@pytest.fixture
def launch(recipe):
    started = []

    def start(*overrides, **options):
        started.append(Ranks(recipe, "name=run", *overrides, **options))
        return started[-1]

    yield start
    for ranks in started:
        ranks.kill()


MANY = pytest.mark.faults


@pytest.mark.parametrize(
    ("lost", "how"),
    [
        (1, signal.SIGKILL),
        pytest.param(0, signal.SIGKILL, marks=MANY),
        pytest.param(1, signal.SIGSTOP, marks=MANY),
        (0, signal.SIGSTOP),
    ],
)
def test_the_others_name_a_rank_that_is_killed_or_stands_still(lost, how, launch, tmp_path):
    ranks = launch(*LONG)
    wait_until(lambda: rows_written(tmp_path / "run") > 20, ranks)
    ranks.processes[lost].send_signal(how)
    other = ranks.processes[1 - lost]
    _, told = other.communicate(timeout=60)
    assert other.returncode == EXIT_RANK_LOST, told
    (line,) = [line for line in told.splitlines() if line.startswith("error: ")]
    assert f"missing: rank {lost}, last heard of" in line
    assert f"error: rank {1 - lost} has been at step " in line
    (event,) = [e for e in events_of(tmp_path / "run") if e["event"] == "rank_lost"]
    assert event["missing"] == [lost]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "failed"


@MANY
def test_three_of_four_ranks_name_the_one_that_died(launch, tmp_path):
    ranks = launch(*LONG, world_size=4)
    wait_until(lambda: rows_written(tmp_path / "run") > 10, ranks)
    ranks.processes[2].kill()
    for number in (0, 1, 3):
        _, told = ranks.processes[number].communicate(timeout=120)
        assert ranks.processes[number].returncode == EXIT_RANK_LOST, told
        assert "missing: rank 2, last heard of" in told
    assert [e["missing"] for e in events_of(tmp_path / "run") if e["event"] == "rank_lost"] == [[2]]


def faulty_program(tmp_path, fault):
    """train_lm.py with something that happens on rank 1 before its 15th step."""
    script = tmp_path / "faulty.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import os, sys, time
            import torch
            import train_lm
            import training.loop
            from common.command import exit_status

            usual = training.loop.training_step

            def step(run, number):
                if number == 15 and run.accelerator.process_index == 1:
                    {fault}
                usual(run, number)

            training.loop.training_step = step
            raise SystemExit(exit_status(train_lm.main))
            """
        )
    )
    return (script,)


def test_a_rank_that_lives_and_does_not_get_on_is_named(launch, tmp_path):
    ranks = launch(*LONG, program=faulty_program(tmp_path, "time.sleep(1000)"))
    (first, second) = ranks.wait()
    assert (first[0], second[0]) == (EXIT_RANK_LOST, EXIT_RANK_LOST), (first, second)
    assert "missing: rank 1, last heard of" in first[1]
    assert "rank 1 has been at step 14" in second[1]
    assert "the other ranks wait for it" in second[1]
    assert "faulty.py" in (tmp_path / "run" / "stalled_rank_1.txt").read_text(), "where it stood"


@MANY
def test_a_rank_that_fails_is_named_by_the_others_and_tells_why(launch, tmp_path):
    ranks = launch(*LONG, program=faulty_program(tmp_path, "raise ValueError('of its own')"))
    (first, second) = ranks.wait()
    assert "missing: rank 1, last heard of" in first[1]
    assert first[0] == EXIT_RANK_LOST
    assert "ValueError: of its own" in second[1]


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("run.bare_model().model.wte.weight.data[3] = torch.inf", "parameter of model.wte.weight"),
        pytest.param(
            "next(iter(run.optimizer.optimizer.state.values()))['exp_avg'][0] = torch.nan", "exp_avg of ", marks=MANY
        ),
        pytest.param(
            "run.bare_model().model.ln_f.register_forward_hook(lambda module, given, out: out * torch.nan)",
            "gradient of ",
            marks=MANY,
        ),
    ],
    ids=["parameter", "moment", "activation"],
)
def test_a_bad_number_on_one_rank_stops_all_before_the_update(fault, named, launch, tmp_path):
    (first, second) = launch("train.steps=30", program=faulty_program(tmp_path, fault)).wait()
    assert (first[0], second[0]) == (EXIT_DIVERGED, EXIT_DIVERGED), (first, second)
    (event,) = [e for e in events_of(tmp_path / "run") if e["event"] == "non_finite"]
    assert event["step"] == 15
    assert any(name.startswith(named) for name in event["tensors"]), event
    assert [step_of(c) for c in list_checkpoints(tmp_path / "run")] == [10]
    assert rows_of(tmp_path / "run")[-1]["step"] == 15


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGUSR1", marks=MANY)])
def test_a_signal_to_one_rank_stops_all_at_one_step(name, launch, tmp_path):
    ranks = launch(
        "train.steps=100000", "telemetry.flush_every=50", "train.eval_every=100000", "checkpoint.every=100000"
    )
    wait_until(lambda: rows_written(tmp_path / "run") > 0, ranks)
    ranks.processes[1].send_signal(getattr(signal, name))
    ended = ranks.wait()
    assert [status for status, _ in ended] == [EXIT_PREEMPTED] * 2, ended
    (checkpoint,) = list_checkpoints(tmp_path / "run")
    assert rows_of(tmp_path / "run")[-1]["step"] == step_of(checkpoint)
    (event,) = [e for e in events_of(tmp_path / "run") if e["event"] == "preempted"]
    assert event["step"] == step_of(checkpoint)


# ------------------------------------------------------------------------------------------------- the same command again

FINITE = (
    "train.steps=80",
    "train.stall_seconds=6",
    "telemetry.flush_every=3",
    "train.eval_every=40",
    "checkpoint.every=10",
)
LATEST_KILL = 40
"""Rows at the latest kill: many steps before the end, which the run must not reach first."""


@pytest.fixture(scope="module", params=[False, True], ids=["DDP", "FSDP2"])
def sharded(request):
    """Whether checkpoints are in shards that the ranks write beside training."""
    return request.param


@pytest.fixture(scope="module")
def unbroken(sharded, workspace, tmp_path_factory):
    """The run of FINITE on two ranks as it goes when nothing happens to it."""
    folder = tmp_path_factory.mktemp("unbroken")
    recipe = {"path": workspace / "tiny.yaml", "overrides": [f"output_dir={folder}"]}
    ranks = Ranks(recipe, "name=run", *FINITE, sharded=sharded)
    try:
        ended = ranks.wait()
    finally:
        ranks.kill()
    assert [status for status, _ in ended] == [0, 0], ended
    return folder / "run"


def assert_goes_on(launch, run, unbroken, sharded):
    """The same command ends as if nothing had been, and some of it was there already."""
    kept = len(list_checkpoints(run))
    ended = launch(*FINITE, sharded=sharded).wait()
    assert [status for status, _ in ended] == [0, 0], ended
    assert_as_unbroken(run, unbroken)
    assert bool([e for e in events_of(run) if e["event"] == "resume"]) == bool(kept)


@MANY
@pytest.mark.parametrize("seed", range(2))
def test_two_ranks_killed_at_a_random_moment_go_on_as_if_nothing_had_been(seed, launch, unbroken, sharded, tmp_path):
    generator = np.random.default_rng(seed)
    ranks, run = launch(*FINITE, sharded=sharded), tmp_path / "run"
    rows = int(generator.integers(1, LATEST_KILL))
    wait_until(lambda: rows_written(run) >= rows, ranks)
    time.sleep(float(generator.uniform(0, 0.1)))  # not only where rows have just been written
    for number in generator.permutation(2):
        ranks.processes[number].kill()
    assert [status for status, _ in ranks.wait()] == [-signal.SIGKILL] * 2
    assert_goes_on(launch, run, unbroken, sharded)


@MANY
@pytest.mark.parametrize("lost", [0, 1])
def test_after_status_69_the_same_command_goes_on_as_if_no_rank_had_died(lost, launch, unbroken, sharded, tmp_path):
    ranks, run = launch(*FINITE, sharded=sharded), tmp_path / "run"
    wait_until(lambda: rows_written(run) > LATEST_KILL // 2, ranks)
    ranks.processes[lost].kill()
    assert ranks.wait()[1 - lost][0] == EXIT_RANK_LOST
    assert len(list_checkpoints(run)) >= 1
    assert_goes_on(launch, run, unbroken, sharded)
    assert [e["missing"] for e in events_of(run) if e["event"] == "rank_lost"] == [[lost]], "it is not forgotten"

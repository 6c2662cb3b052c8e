"""Checkpoints that two ranks write at once, beside training (FSDP2): a slow disk, a full one, a rank lost over it."""

from __future__ import annotations

import json
import signal
import textwrap

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from analysis.compare.arms import find_arms, load_member
from common.command import EXIT_BAD_INPUT, EXIT_PREEMPTED, EXIT_RANK_LOST, EXIT_STORAGE
from model import load_model
from record import export
from record.checkpoints import is_sharded, list_checkpoints, step_of
from record.integrity import damage
from record.whole import joined_weights
from tests.conftest import called, events_of
from tests.faults.conftest import assert_as_unbroken

from .ranks import Ranks, rows_written, wait_until

SHORT = ("train.steps=60", "train.eval_every=60", "checkpoint.every=10", "train.stall_seconds=60")
SLOW = "if rank == 1 and count == {number}:\n    while not os.path.exists({go!r}): time.sleep(0.01)"
REFUSED = "if rank == 1 and count == {number}: resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))"


def program(folder, *faults):
    """train_lm.py with something that happens to a rank before it writes its shard, by the count of them."""
    script = folder / "faulty.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, resource, signal, time
            import train_lm
            import record.checkpoints
            from common.command import EXIT_STORAGE

            usual, count = record.checkpoints.write_shard, 0
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

            def write_shard(folder, rank, parts):
                global count
                count += 1
            {faults}
                usual(folder, rank, parts)

            record.checkpoints.write_shard = write_shard
            train_lm.run_and_exit()
            """
        ).format(faults=textwrap.indent("\n".join(faults), "    "))
    )
    return (script,)


@pytest.fixture(scope="module")
def begin(workspace, tmp_path_factory):
    """Start two ranks in a folder of their own; returns them and the run's directory."""
    started = []

    def start(folder, *overrides, **options):
        recipe = {"path": workspace / "tiny.yaml", "overrides": [f"output_dir={folder}"]}
        started.append(Ranks(recipe, "name=run", *SHORT, *overrides, sharded=True, **options))
        return started[-1], folder / "run"

    yield start
    for ranks in started:
        ranks.kill()


def steps_of(run):
    return [step_of(path) for path in list_checkpoints(run)]


@pytest.fixture(scope="module")
def refused(begin, tmp_path_factory):
    """A run whose second rank is slow at the first checkpoint, and cannot write at the second."""
    folder = tmp_path_factory.mktemp("refused")
    go = folder / "go"
    faults = (SLOW.format(number=1, go=str(go)), REFUSED.format(number=2))
    ranks, run = begin(folder, program=program(folder, *faults))
    wait_until(lambda: rows_written(run) > 14, ranks)
    assert not steps_of(run), "a rank has not written its shard"
    go.touch()
    return ranks.wait(), run


def test_training_goes_on_while_a_rank_writes_and_a_disk_that_refuses_ends_all_ranks_with_its_line(refused):
    ended, run = refused
    assert [status for status, _ in ended] == [EXIT_STORAGE] * 2, ended
    for _, told in ended:
        (line,) = [line for line in told.splitlines() if line.startswith("error: ")]
        assert "File too large" in line
        assert line.endswith("the same command goes on from checkpoints/step_00000010")
        assert "Traceback" not in told
    assert steps_of(run) == [10]
    assert damage(list_checkpoints(run)[0]) is None
    assert not list(run.glob("checkpoints/.*")), "what could not be finished is gone"
    assert json.loads((run / "status.json").read_text())["status"] == "failed"


def test_a_checkpoint_in_shards_is_loaded_and_exported(refused, tmp_path):
    _, run = refused
    (checkpoint,) = list_checkpoints(run)
    assert is_sharded(checkpoint)
    assert not (checkpoint / "model.safetensors").exists()
    weights = joined_weights(checkpoint)
    (arm,) = find_arms([str(run)])
    model = load_member(arm.members[0])
    assert all(model.state_dict()[name].cpu().equal(weight) for name, weight in weights.items())
    out = tmp_path / "exported"
    done = called(export.main, run, "--out", out)
    assert done.returncode == 0, done.stderr
    found = load_file(out / "model.safetensors")
    assert found.keys() == weights.keys()
    assert all(found[name].equal(weight) for name, weight in weights.items())
    whole = load_model(out)
    assert whole.lm_head.weight is whole.get_input_embeddings().weight
    assert {"tokenizer.json", "modeling.py", "config.json"} <= {path.name for path in out.iterdir()}
    assert not any((out / name).exists() for name in ("shards.json", "trainer_state.json", "manifest.json"))
    assert AutoModelForCausalLM.from_pretrained(out, trust_remote_code=False, use_safetensors=True) is not None
    again = called(export.main, checkpoint, "--out", out)
    assert again.returncode == EXIT_BAD_INPUT
    assert again.stderr == f"error: --out: {out} is there already; give another folder\n"


@pytest.mark.faults
def test_after_a_disk_has_refused_the_same_command_goes_on_as_if_nothing_had_been(refused, begin, tmp_path):
    _, run = refused
    for folder in (run.parent, tmp_path):
        ended = begin(folder)[0].wait()
        assert [status for status, _ in ended] == [0, 0], ended
    assert_as_unbroken(run, tmp_path / "run")


@pytest.mark.faults
def test_a_rank_lost_while_a_checkpoint_is_written_leaves_none_of_it(begin, tmp_path):
    never = SLOW.format(number=2, go=str(tmp_path / "never"))
    short = ("train.stall_seconds=6", "train.steps=100000", "checkpoint.every=20")
    ranks, run = begin(tmp_path, *short, program=program(tmp_path, never))
    wait_until(lambda: rows_written(run) > 50, ranks)
    (half,) = run.glob("checkpoints/.step_00000040.*.tmp")
    ranks.processes[1].send_signal(signal.SIGKILL)
    _, told = ranks.processes[0].communicate(timeout=60)
    assert ranks.processes[0].returncode == EXIT_RANK_LOST, told
    assert "missing: rank 1, last heard of" in told
    assert steps_of(run) == [20]
    ranks, _ = begin(tmp_path, *short)
    wait_until(lambda: steps_of(run)[-1] > 20, ranks)
    assert not half.exists(), "what a launch has left half-written is gone"


@pytest.mark.faults
def test_a_stop_waits_for_what_is_being_written(begin, tmp_path):
    go = tmp_path / "go"
    ranks, run = begin(tmp_path, "train.steps=100000", program=program(tmp_path, SLOW.format(number=1, go=str(go))))
    wait_until(lambda: rows_written(run) > 14, ranks)
    assert not steps_of(run)
    ranks.processes[1].terminate()
    go.touch()
    assert [status for status, _ in ranks.wait()] == [EXIT_PREEMPTED] * 2
    first, *_, last = steps_of(run)
    assert first == 10
    (event,) = [e for e in events_of(run) if e["event"] == "preempted"]
    assert event["step"] == last
    assert all(damage(checkpoint) is None for checkpoint in list_checkpoints(run))

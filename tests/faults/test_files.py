"""Files that are damaged, missing, foreign or refused: found by name, and the last good checkpoint stays."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import yaml

from common.command import EXIT_BAD_INPUT, EXIT_PREEMPTED, EXIT_STORAGE
from configs.load import load_config
from record.checkpoints import list_checkpoints, step_of
from record.integrity import damage
from tests.conftest import events_of
from training.resume import find_resume_point

from .conftest import MANY_FORMS, assert_as_unbroken


@pytest.fixture(scope="module")
def stopped(start, unbroken, tmp_path_factory):
    """A run that was stopped after its second checkpoint, which is whole, as is the one before."""
    ended = start(tmp_path_factory.mktemp("stopped") / "run", at=int(unbroken.moments * 0.6), signals=["SIGTERM"])
    assert ended.status == EXIT_PREEMPTED, ended.output
    assert len(list_checkpoints(ended.directory)) >= 2
    return ended.directory


@pytest.fixture
def copy(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run", symlinks=True)


def configuration(run):
    return load_config(run / "config.yaml", [f"output_dir={run.parent}"])


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\n")


DAMAGES = [truncate, flip_a_bit, lengthen, os.remove]


@pytest.mark.parametrize("harm", DAMAGES, ids=lambda harm: harm.__name__)
def test_every_damaged_file_of_a_checkpoint_is_found_and_the_one_before_is_used(harm, copy):
    damage_in_turn(harm, copy, {"model.safetensors", "optimizer.safetensors", "trainer_state.json", "manifest.json"})


@pytest.mark.faults
@pytest.mark.parametrize("form", ["sharded"], indirect=True)
def test_every_damaged_file_of_a_checkpoint_in_shards_is_found_and_the_one_before_is_used(form, tmp_path):
    stopped = form.start(tmp_path / "run", step=25, signals=["SIGTERM"])
    assert stopped.status == EXIT_PREEMPTED, stopped.output
    for harm in DAMAGES:
        names = {"shard_00000.safetensors", "shards.json", "trainer_state.json", "manifest.json"}
        damage_in_turn(harm, stopped.directory, names)
    flip_a_bit(list_checkpoints(stopped.directory)[-1] / "shard_00000.safetensors")
    ended = form.start(stopped.directory)
    assert ended.status == 0, ended.output
    assert "cannot be used: shard_00000.safetensors is not what was written" in ended.output
    assert_as_unbroken(stopped.directory, form.unbroken().directory)


def damage_in_turn(harm, copy, needed):
    """Every file of the last checkpoint, the manifest itself too."""
    config, (before, last) = configuration(copy), list_checkpoints(copy)[-2:]
    names = sorted(p.name for p in last.iterdir())
    assert needed <= set(names)
    for name in names:
        whole = (last / name).read_bytes()
        harm(last / name)
        if name == "trainer_state.json" and harm is os.remove:
            assert list_checkpoints(copy)[-1] == before, "without it a folder is no checkpoint"
        else:
            point = find_resume_point(config, copy)
            assert point.step == step_of(before)
            (rejected,) = point.rejected
            assert rejected["checkpoint"] == last.name
            assert name in rejected["problem"]
        (last / name).write_bytes(whole)
    assert find_resume_point(config, copy).step == step_of(last)


@pytest.mark.parametrize("file", ["model.safetensors", "trainer_state.json"])
def test_a_run_with_a_damaged_checkpoint_says_so_and_ends_as_if_it_had_not_been(file, copy, start, unbroken):
    before, last = list_checkpoints(copy)[-2:]
    flip_a_bit(last / file)
    ended = start(copy)
    assert ended.status == 0, ended.output
    assert f"{last.name} cannot be used: {file} is not what was written" in ended.output
    (event,) = [e for e in events_of(copy) if e["event"] == "checkpoint_rejected"]
    assert (event["checkpoint"], event["step"]) == (last.name, int(before.name[5:]))
    assert last.with_name(f"{last.name}.rejected").is_dir()
    assert_as_unbroken(copy, unbroken.directory)


def test_a_run_without_one_whole_checkpoint_begins_again_or_is_refused(copy, start, unbroken):
    for checkpoint in list_checkpoints(copy):
        truncate(checkpoint / "optimizer.safetensors")
    refused = start(copy, "resume=must")
    assert refused.status == EXIT_BAD_INPUT
    assert "optimizer.safetensors has" in refused.output
    ended = start(copy)
    assert ended.status == 0, ended.output
    assert_as_unbroken(copy, unbroken.directory)


def test_a_lost_log_is_asked_for_and_no_checkpoint_is_given_up(copy, start):
    before = [p.name for p in list_checkpoints(copy)]
    (copy / "metrics.jsonl").write_text("")
    ended = start(copy)
    assert ended.status == EXIT_BAD_INPUT
    assert "metrics.jsonl: its rows end before the first whole checkpoint; restore it" in ended.output
    assert [p.name for p in list_checkpoints(copy)] == before


def test_rows_that_are_missing_before_a_checkpoint_are_taken_again(copy, start, unbroken):
    """metrics.jsonl may be shorter than a checkpoint says after a crash of the whole machine."""
    last = list_checkpoints(copy)[-1]
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(lines[: int(last.name[5:]) - 1]) + lines[-1][:40])
    ended = start(copy)
    assert ended.status == 0, ended.output
    assert "are missing in metrics.jsonl" in ended.output
    assert_as_unbroken(copy, unbroken.directory)


def test_a_torn_last_row_is_taken_again(copy, start, unbroken):
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "loss/nl')
    assert start(copy).status == 0
    assert_as_unbroken(copy, unbroken.directory)


def test_a_checkpoint_of_another_configuration_is_refused_by_its_keys(copy, start, tmp_path):
    other = start(tmp_path / "other", "seed=5", "optimizer.lr=1e-3")
    assert other.status == 0, other.output
    for checkpoint in list_checkpoints(copy):
        shutil.rmtree(checkpoint)
    foreign = list_checkpoints(other.directory)[0]
    shutil.copytree(foreign, copy / "checkpoints" / foreign.name)
    before = (copy / "metrics.jsonl").read_bytes()
    ended = start(copy)
    assert ended.status == EXIT_BAD_INPUT
    lines = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    assert [line.split(": ")[1] for line in lines] == ["optimizer.lr", "seed"]
    assert foreign.name in lines[0]
    assert (copy / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("split", ["train", "validation"])
def test_damaged_tokens_are_refused_by_name(split, copy, start, tmp_path):
    store = json.loads((copy / "environment.json").read_text())["data"]
    cache = tmp_path / "cache"
    shutil.copytree(store["path"], cache / store["store"])
    flip_a_bit(cache / store["store"] / f"{split}.bin")
    for directory in (copy, tmp_path / "new"):
        ended = start(directory, f"data.cache_dir={cache}")
        assert ended.status == EXIT_BAD_INPUT
        assert f"{split}.bin: not what was written" in ended.output
    assert not (tmp_path / "new").exists()


def test_another_tokenizer_in_the_store_is_refused_by_name(copy, start, tmp_path):
    store = json.loads((copy / "environment.json").read_text())["data"]
    cache = tmp_path / "cache"
    shutil.copytree(store["path"], cache / store["store"])
    file = cache / store["store"] / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    a, b = sorted(vocabulary, key=vocabulary.get)[-2:]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    file.write_text(json.dumps(content))
    ended = start(copy, f"data.cache_dir={cache}")
    assert ended.status == EXIT_BAD_INPUT
    assert "not the tokenizer that the tokens were made with" in ended.output


def test_a_text_that_changed_under_the_run_is_refused(start, unbroken, workspace, tmp_path):
    text = shutil.copytree(workspace / "text", tmp_path / "text")
    own = (f"data.paths=[{text}]", f"data.cache_dir={tmp_path}/cache")
    stopped = start(tmp_path / "run", *own, at=int(unbroken.moments * 0.6), signals=["SIGTERM"])
    assert stopped.status == EXIT_PREEMPTED, stopped.output
    file = sorted(text.iterdir())[0]
    file.write_text(file.read_text() + "\nOne line more.\n")
    before = (stopped.directory / "metrics.jsonl").read_bytes()
    ended = start(stopped.directory, *own)
    assert ended.status == EXIT_BAD_INPUT
    assert "its text or its tokenizer has changed since" in ended.output
    assert (stopped.directory / "metrics.jsonl").read_bytes() == before


# ----------------------------------------------------------------------------------------------- a disk that refuses


def refused_then_finished(form, directory, **plan):
    """A run that the disk stopped with one line; then the same command without the fault. Returns that line."""
    ended = form.start(directory, **plan)
    assert ended.status == EXIT_STORAGE, ended.output
    (line,) = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in ended.output
    for checkpoint in list_checkpoints(directory):
        assert damage(checkpoint) is None
    assert not list(directory.rglob("*.tmp")), "what could not be finished is gone"
    again = form.start(directory)
    assert again.status == 0, again.output
    assert_as_unbroken(directory, form.unbroken().directory)
    return line


@pytest.mark.parametrize("form", ["whole"], indirect=True)
def test_a_file_that_may_not_grow_stops_the_run_with_one_line(form, unbroken, tmp_path):
    """The first file to meet the limit is the optimizer's, or the log: both are tried."""
    sizes = {p.name: p.stat().st_size for p in list_checkpoints(unbroken.directory)[-1].iterdir()}
    log = (unbroken.directory / "metrics.jsonl").stat().st_size
    assert log < sizes["model.safetensors"] < sizes["optimizer.safetensors"]
    between = (sizes["model.safetensors"] + sizes["optimizer.safetensors"]) // 2
    line = refused_then_finished(form, tmp_path / "state", largest_file=between)
    assert "go" in line
    assert "from the start" in line
    line = refused_then_finished(form, tmp_path / "log", largest_file=log // 2)
    assert "File too large" in line


@pytest.mark.faults
@pytest.mark.parametrize("form", ["sharded"], indirect=True)
def test_a_shard_that_may_not_grow_stops_the_run_with_one_line(form, tmp_path):
    last = list_checkpoints(form.unbroken().directory)[-1]
    shard, weights = (last / name for name in ("shard_00000.safetensors", "model.safetensors"))
    line = refused_then_finished(form, tmp_path / "run", largest_file=shard.stat().st_size - 1)
    assert line.endswith("the same command goes on from the start")
    assert weights.stat().st_size < shard.stat().st_size


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system can be mounted by root alone")
@pytest.mark.parametrize("form", MANY_FORMS, indirect=True)
def test_a_full_disk_stops_the_run_with_one_line(form, tmp_path):
    import subprocess

    unbroken, start = form.unbroken(), form.start
    one = sum(p.stat().st_size for p in list_checkpoints(unbroken.directory)[-1].iterdir())
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(1.6 * one)}", "tmpfs", disk], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not let its root mount a file system")
    try:
        ended = start(disk / "run")
        assert ended.status == EXIT_STORAGE, ended.output
        (line,) = [line for line in ended.output.splitlines() if line.startswith("error: ")]
        assert "No space left on device" in line
        (checkpoint,) = list_checkpoints(disk / "run")
        assert damage(checkpoint) is None
        assert line.endswith(f"the same command goes on from checkpoints/{checkpoint.name}")
        subprocess.run(["mount", "-o", f"remount,size={8 * one}", disk], check=True)
        again = start(disk / "run")
        assert again.status == 0, again.output
        assert_as_unbroken(disk / "run", unbroken.directory)
    finally:
        subprocess.run(["umount", disk], check=False)


def test_a_folder_that_cannot_be_written_is_one_line(start, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "run", "/proc/self/run"):
        ended = start(type(tmp_path)(place))
        assert ended.status == EXIT_BAD_INPUT, ended.output
        (line,) = ended.output.strip().splitlines()
        assert "cannot be written" in line


@pytest.mark.parametrize("form", MANY_FORMS, indirect=True)
def test_checkpoints_deleted_under_the_run_are_written_anew(form, tmp_path):
    unbroken, start = form.unbroken(), form.start
    folder = tmp_path / "run" / "checkpoints"
    ended = start(tmp_path / "run", at=int(unbroken.moments * 0.5), delete=[str(folder)])
    assert ended.status in (0, EXIT_STORAGE), ended.output
    assert "Traceback" not in ended.output
    again = start(tmp_path / "run")
    assert again.status == 0, again.output
    assert_as_unbroken(tmp_path / "run", unbroken.directory)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("what", ["checkpoints", "."])
def test_folders_deleted_at_any_moment_leave_one_line(what, seed, start, unbroken, tmp_path):
    at = int(np.random.default_rng(seed).integers(unbroken.moments // 3, unbroken.moments))
    ended = start(tmp_path / "run", at=at, delete=[str(tmp_path / "run" / what)])
    assert ended.status in (0, EXIT_STORAGE), ended.output
    assert "Traceback" not in ended.output
    again = start(tmp_path / "run")
    assert again.status == 0, again.output
    assert_as_unbroken(tmp_path / "run", unbroken.directory)


def test_a_clock_that_jumps_changes_nothing(start, unbroken, tmp_path):
    ended = start(tmp_path / "run", clock=True)
    assert ended.status == 0, ended.output
    assert_as_unbroken(tmp_path / "run", unbroken.directory)


def test_a_configuration_is_what_it_was_after_a_stop(stopped):
    """config.yaml of a run is a recipe of its own."""
    assert yaml.safe_load((stopped / "config.yaml").read_text())["train"]["steps"] == 30

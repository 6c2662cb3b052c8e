"""One writer for a run directory: the second is refused, and a killed one leaves no lock behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from common.command import EXIT_BAD_INPUT
from common.errors import InputError
from record.lock import LOCK_FILE, held_by, lock_holder, run_lock
from tests.conftest import ROOT, events_of
from training.run import _record_lost_ranks

from .conftest import assert_as_unbroken

HOLD = """
import sys, time
from pathlib import Path
from record.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(300)
"""

CONTEND = """
import sys, time
from pathlib import Path
from common.errors import InputError
from record.lock import run_lock
run, times = Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
held = refused = 0
while held < times:
    try:
        with run_lock(run):
            (run / "inside").touch(exist_ok=False)  # fails if another process is inside
            time.sleep(0.0005)
            (run / "inside").unlink()
            held += 1
    except InputError as error:
        if "is writing this run" not in str(error):
            raise
        refused += 1
print(refused)
"""
CONTENDERS, TIMES = 4, 100

LOOK = """
import sys
from pathlib import Path
from record.lock import lock_holder
print("ready", flush=True)
while True:
    lock_holder(Path(sys.argv[1]))
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path/run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait(60)


def test_the_second_of_two_runs_in_one_folder_is_refused(holder, start, unbroken, tmp_path):
    ended = start(tmp_path / "run")
    assert ended.status == EXIT_BAD_INPUT
    assert f"process {holder.pid} on " in ended.output
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [LOCK_FILE], "nothing is written"
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait(60)
    assert (tmp_path / "run" / LOCK_FILE).exists(), "a killed process cannot tidy up"
    again = start(tmp_path / "run")
    assert again.status == 0, again.output
    assert_as_unbroken(tmp_path / "run", unbroken.directory)
    assert not (tmp_path / "run" / LOCK_FILE).exists()


def test_survivors_of_an_old_launch_write_nothing_into_a_run_that_was_started_again(holder, tmp_path):
    """Rank 0 was killed, its lock went with it, and the run goes on elsewhere before the other ranks have noticed."""
    survivor = SimpleNamespace(num_processes=2, process_index=1, is_main_process=False)
    run, holds = tmp_path / "run", held_by(tmp_path / "run")
    assert str(holder.pid) in holds
    _record_lost_ranks(survivor, run, "an old launch", 7, "rank 0 is missing", [0])
    assert sorted(p.name for p in run.iterdir()) == [LOCK_FILE]
    _record_lost_ranks(survivor, run, holds, 7, "rank 0 is missing", [0])
    assert [event["event"] for event in events_of(run)] == ["rank_lost"]


def test_a_lock_leaves_no_trace_where_nothing_was_written(tmp_path):
    with run_lock(tmp_path / "runs" / "run"):
        assert (tmp_path / "runs" / "run" / LOCK_FILE).exists()
    assert not (tmp_path / "runs").exists()


def test_of_many_that_want_the_lock_again_and_again_never_two_have_it(tmp_path):
    """Each holder deletes the file it locked: whoever opened that file must not think it holds the lock. And all get it."""
    (tmp_path / "run").mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CONTEND, tmp_path / "run", str(TIMES)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(CONTENDERS)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * CONTENDERS, [error for _, error in told]
    assert sum(int(refused) for refused, _ in told) > 0, "they did want it at the same time"
    assert list((tmp_path / "run").iterdir()) == []


def test_the_lock_is_not_inherited(holder, tmp_path):
    """A child that outlives the run must not keep its folder locked; a record lock is its process's alone."""
    with pytest.raises(InputError, match="is writing this run"), run_lock(tmp_path / "run"):
        pass
    own = tmp_path / "own"
    with run_lock(own):
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
    with run_lock(own):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_who_looks_for_the_holder_of_a_lock_takes_it_from_no_one(tmp_path):
    """A run that begins while another process looks all the time gets its lock, each time."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK_FILE).touch()
    looking = subprocess.Popen([sys.executable, "-c", LOOK, tmp_path / "run"], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert looking.stdout is not None
        assert looking.stdout.readline() == b"ready\n"
        for _ in range(2000):
            with run_lock(tmp_path / "run"):
                pass
    finally:
        looking.kill()
        looking.communicate()


def test_the_holder_of_a_lock_is_named_as_long_as_it_lives(holder, tmp_path):
    assert lock_holder(tmp_path / "run") == f"process {holder.pid} on {os.uname().nodename}"
    holder.kill()
    holder.wait(60)
    assert lock_holder(tmp_path / "run") is None

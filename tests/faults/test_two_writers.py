"""One writer for a run directory: the second is refused, and a killed one leaves no lock behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from configs.errors import EXIT_BAD_INPUT, InputError
from stability.lock import LOCK_FILE, run_lock

from ..conftest import ROOT
from .conftest import assert_as_unbroken

HOLD = """
import sys, time
from pathlib import Path
from stability.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(300)
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
    process.wait()


def test_the_second_of_two_runs_in_one_folder_is_refused(holder, start, unbroken, tmp_path):
    ended = start(tmp_path / "run")
    assert ended.status == EXIT_BAD_INPUT
    assert f"process {holder.pid} on " in ended.output
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [LOCK_FILE], "nothing is written"
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / LOCK_FILE).exists(), "a killed process cannot tidy up"
    again = start(tmp_path / "run")
    assert again.status == 0, again.output
    assert_as_unbroken(tmp_path / "run", unbroken.directory)
    assert not (tmp_path / "run" / LOCK_FILE).exists()


def test_a_lock_leaves_no_trace_where_nothing_was_written(tmp_path):
    with run_lock(tmp_path / "runs" / "run"):
        assert (tmp_path / "runs" / "run" / LOCK_FILE).exists()
    assert not (tmp_path / "runs").exists()


def test_of_many_that_want_the_lock_at_once_one_has_it(tmp_path):
    """Each holder deletes the file it locked: whoever opened that file must not think it holds the lock."""
    script = HOLD.replace("time.sleep(300)", "time.sleep(float(sys.argv[2]))")
    processes = []
    for _ in range(4):
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", script, tmp_path / "run", "1.5"],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=120) for process in processes]
    held = [out for out, _ in outputs if "held" in out]
    refused = [err for _, err in outputs if "is writing this run" in err]
    assert len(held) >= 1
    assert len(held) + len(refused) == 4


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

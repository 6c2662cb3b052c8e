"""What a suite shows: on a terminal the check's count and what is under way; of many runs how many are in which state."""

import os
import pty
import re
import subprocess
import sys

from record.suite import PlannedRun, SuitePlan
from suite.report import results
from suite.watch import states

from ..analysis.written import write_run
from ..conftest import ROOT


def test_a_terminal_shows_the_check_and_what_is_under_way(workspace, tmp_path):
    """A run that has no step yet is being prepared."""
    (tmp_path / "suite.yaml").write_text(
        f"recipe: {workspace}/tiny.yaml\nout: out\noverrides: [train.steps=6]\narms: {{one: [], two: [optimizer.lr=1e-3]}}\n"
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run_suite.py"), "suite.yaml"],
        cwd=tmp_path,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "150"},
        stdout=theirs,
    )
    os.close(theirs)
    shown = "".join(iter(lambda: read(ours), ""))
    assert process.wait() == 0, shown
    assert "\rchecked 0 of 2\rchecked 1 of 2\rchecked 2 of 2\r\n" in shown
    assert re.search(r"\n\S*one +preparing +6 ", shown)
    assert "one: finished: validation NLL" in shown


def read(terminal):
    """What a terminal was sent; "" once its programs have ended, which Linux tells as an error."""
    try:
        return os.read(terminal, 1 << 16).decode()
    except OSError:
        return ""


def test_of_many_runs_those_under_way_and_those_to_do_are_counted_apart(tmp_path):
    runs = tuple(PlannedRun(f"a_seed{seed}", "a", None, None, seed) for seed in range(30))
    words = ["finished"] * 11 + ["diverged"] * 2 + ["running"] * 3 + ["stopped", "failed with status 1"]
    ends = dict(zip((run.name for run in runs), words, strict=False))
    rows = [line.split() for line in results(SuitePlan("a", None, runs), ends, tmp_path).splitlines()]
    assert rows == [
        ["arm", "finished", "diverged", "running", "to", "do", "other"],
        ["a", "11", "2", "3", "12", "2"],
    ]


def test_a_run_that_was_killed_is_told_from_one_that_is_running(tmp_path):
    """Both say that they are running; one of them holds its lock, here this process's child."""
    plan = SuitePlan("a", None, tuple(PlannedRun(f"a_seed{seed}", "a", None, None, seed) for seed in range(3)))
    for run in plan.runs:
        write_run(tmp_path / run.name, [{"step": 1, "loss/nll": 5.0}], status="running")
    hold = "import sys; from pathlib import Path; from record.lock import run_lock\n"
    hold += "with run_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, tmp_path / "a_seed1"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert states(plan, tmp_path) == {"a_seed0": "killed", "a_seed1": "running", "a_seed2": "killed"}
        holder.communicate()
    assert states(plan, tmp_path)["a_seed1"] == "killed"
    (tmp_path / "a_seed0" / "status.json").write_text("{")
    assert states(plan, tmp_path)["a_seed0"] == "unreadable"

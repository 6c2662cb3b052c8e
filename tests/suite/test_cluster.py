"""A suite as jobs: submitit's local executor, and Slurm's commands as small programs that keep their files in a folder.

What is tested is the whole way: the array that is submitted, its jobs, preemption and the requeue, and that the runs are those of
one machine to the bit.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

from common.errors import InputError
from run_suite import main
from suite.cluster import executor

from ..conftest import ROOT, called, events_of, rows_of

SUITE = """
recipe: {workspace}/tiny.yaml
out: {out}
arms:
  metric: [train.steps=120, checkpoint.every=60]
  linear: [train.steps=120, checkpoint.every=60, head.kind=linear, objective.kind=ce]
scenarios:
  calm: {{}}
  jump: {{branch_from: calm@60, overrides: ['stress=[{{kind: scale_lr, step: 70, factor: 9.0}}]'], arms: [metric]}}
"""
SBATCH = """
import json, os, pathlib, re, subprocess, sys
folder, script = pathlib.Path(os.environ["FAKE_SLURM"]), pathlib.Path(sys.argv[1])
text = script.read_text()
number = 100 + len(list(folder.glob("script_*")))
(folder / f"script_{number}").write_text(text)
array = re.search(r"#SBATCH --array=0-(\\d+)", text)
for task in range(int(array[1]) + 1) if array else [None]:
    job = f"{number}" if task is None else f"{number}_{task}"
    own = {"SLURM_JOB_ID": str(number)}
    own |= {} if task is None else {"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(task)}
    (folder / f"job_{job}").write_text(json.dumps([str(folder / f"script_{number}"), own]))
    subprocess.run([sys.executable, str(folder / "start.py"), job], check=True)
print(f"Submitted batch job {number}")
"""
START = """
import json, os, pathlib, subprocess, sys
folder, job = pathlib.Path(os.environ["FAKE_SLURM"]), sys.argv[1]
script, own = json.loads((folder / f"job_{job}").read_text())
log = (folder / f"output_{job}").open("ab")
process = subprocess.Popen(["bash", script], env={**os.environ, **own}, stdout=log, stderr=log, start_new_session=True)
(folder / f"process_{job}").write_text(str(process.pid))
"""
SRUN = """
import os, sys
command = sys.argv[1:]
while command[0].startswith("-"):
    del command[: 1 if "=" in command[0] or command[0] in ("--unbuffered", "-u") else 2]
os.environ.update(SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_NODEID="0", SLURM_NTASKS="1", SLURM_JOB_NUM_NODES="1")
os.execvp(command[0], command)
"""
SACCT = """
import os, pathlib
folder = pathlib.Path(os.environ["FAKE_SLURM"])
print("JobID|State|NodeList")
for file in sorted(folder.glob("process_*")):
    stat = pathlib.Path(f"/proc/{file.read_text()}/stat")
    alive = stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
    print(f"{file.name.removeprefix('process_')}|{'RUNNING' if alive else 'COMPLETED'}|here")
"""
SCONTROL = """
import os, pathlib, subprocess, sys
folder = pathlib.Path(os.environ["FAKE_SLURM"])
assert sys.argv[1] == "requeue"
(folder / f"requeued_{sys.argv[2]}").touch()
subprocess.run([sys.executable, str(folder / "start.py"), sys.argv[2]], check=True)
"""
SCANCEL = """
import os, pathlib, signal, sys
folder = pathlib.Path(os.environ["FAKE_SLURM"])
os.killpg(int((folder / f"process_{sys.argv[1]}").read_text()), signal.SIGTERM)
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Slurm's commands on the path, which start jobs at once as processes of this machine."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    commands = {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "scontrol": SCONTROL, "scancel": SCANCEL}
    for name, text in commands.items():
        (folder / name).write_text(f"#!{sys.executable}\n{text}")
        (folder / name).chmod(0o755)
    (folder / "start.py").write_text(START)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    return folder


def written(workspace, folder, out):
    """The suite's file."""
    file = folder / "suite.yaml"
    file.write_text(SUITE.format(workspace=workspace, out=out))
    return file


def same_runs(first, second, *names):
    """Whether two folders hold the same runs to the bit."""
    return all(rows_of(first / name) == rows_of(second / name) for name in ("metric_calm", "linear_calm", *names))


@pytest.fixture(scope="module")
def here(workspace, tmp_path_factory):
    """The same runs without a cluster."""
    folder = tmp_path_factory.mktemp("here")
    result = called(main, written(workspace, folder, folder / "out"), "--jobs", "2", cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "out"


def test_submitits_own_executor_gives_the_same_runs(workspace, tmp_path, here):
    """One at a time, as asked, though it would start any number at once. (A branch waits for its parent as on Slurm, below.)"""
    out = tmp_path / "out"
    given = ["--on", "local", "--jobs", "1", "--job", "timeout_min=20"]
    suite = written(workspace, tmp_path, out)
    suite.write_text(suite.read_text().partition("  jump")[0])
    result = called(main, suite, *given, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert same_runs(out, here)
    assert "metric_calm: finished: validation NLL" in result.stdout
    ended, began = out / "metric_calm" / "status.json", out / "linear_calm" / "config.yaml"
    assert ended.stat().st_mtime_ns < began.stat().st_mtime_ns


def test_slurm_gives_the_same_runs_and_requeues_what_it_preempts(workspace, tmp_path, here, slurm):
    """One array for the runs that can start at once, then a job for the branch. One job gets the signal that comes before its
    time is over: it writes a checkpoint, is queued again, and goes on from there.
    """
    out = tmp_path / "out"
    given = ["--on", "slurm", "--jobs", "7", "--job", "slurm_partition=small", "--job", "cpus_per_task=1"]
    command = [sys.executable, str(ROOT / "run_suite.py"), str(written(workspace, tmp_path, out)), *given]
    process = subprocess.Popen([*command, "--job", "timeout_min=600"], stdout=subprocess.PIPE, text=True)
    metrics, deadline = out / "metric_calm" / "metrics.jsonl", time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.02)
    group = (slurm / "process_100_0").read_text()
    job = subprocess.run(
        ["pgrep", "-g", group, "-f", "submitit.core._submit"], capture_output=True, text=True, check=True
    )
    os.kill(int(job.stdout.split()[-1]), signal.SIGUSR2)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert same_runs(out, here, "metric_jump")
    assert (slurm / "requeued_100_0").exists()
    events = [event["event"] for event in events_of(out / "metric_calm")]
    assert [event for event in events if event in ("preempted", "resume")] == ["preempted", "resume"]
    first, second = ((slurm / f"script_{number}").read_text() for number in (100, 101))
    assert "#SBATCH --array=0-1%2\n" in first
    assert "#SBATCH --partition=small\n" in first
    assert "#SBATCH --array" not in second


@pytest.mark.parametrize(
    ("cluster", "given", "told"),
    [
        ("slurm", [], "Could not detect"),
        ("local", ["timeout_min"], "--job timeout_min: give KEY=VALUE"),
        ("local", ["no_such_thing=1"], "no_such_thing"),
    ],
)
def test_mistakes_are_one_line(cluster, given, told, tmp_path):
    with pytest.raises(InputError, match=told):
        executor(cluster, tmp_path, None, given)

"""The suite runner in real processes: runs, comparison, interruption, and going on."""

import json
import os
import signal
import subprocess
import sys
import time

from .conftest import ROOT, python, rows_of

SUITE = """
recipe: {workspace}/tiny.yaml
out: out
runs:
  linear: [head.kind=linear, objective.kind=ce]
  wild: [optimizer.lr=1e18, optimizer.clip_norm=null]
  metric: [train.steps=120, checkpoint.every=30]
analyses:
  - curves {{linear}} {{metric}} --out {{out}}/curves.png
  - summary {{runs}} --out {{out}}/summary
"""


def test_an_interrupted_suite_goes_on_where_it_was(workspace, tmp_path):
    """Started away from the project, stopped in the third run, started again: a run that diverges is a result, not an end."""
    (tmp_path / "suite.yaml").write_text(SUITE.format(workspace=workspace))
    command = [sys.executable, str(ROOT / "run_suite.py"), "suite.yaml"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    metrics = tmp_path / "out" / "metric" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and metrics.read_text().count("\n") > 5:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    linear = (tmp_path / "out" / "linear" / "metrics.jsonl").stat().st_mtime_ns
    assert json.loads((tmp_path / "out" / "metric" / "status.json").read_text())["status"] == "preempted"

    result = python(*command[1:], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "linear" / "metrics.jsonl").stat().st_mtime_ns == linear
    assert [row["step"] for row in rows_of(tmp_path / "out" / "metric")] == list(range(1, 121))
    for path in ("out/curves.png", "out/summary/summary.md"):
        assert (tmp_path / path).stat().st_size > 100
        assert path in result.stdout
    assert "diverged" in result.stdout


def test_runs_side_by_side(workspace, tmp_path):
    """Two of three at a time; stopped when two are under way, then done, each with what it printed in a file of its own."""
    runs = "\n".join(f"  {name}: [seed={seed}, train.steps=60]" for seed, name in enumerate(("one", "two", "three")))
    (tmp_path / "suite.yaml").write_text(f"recipe: {workspace}/tiny.yaml\nout: out\nruns:\n{runs}\n")
    command = [str(ROOT / "run_suite.py"), "suite.yaml", "--jobs", "2"]
    process = subprocess.Popen([sys.executable, *command], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    metrics = [tmp_path / "out" / name / "metrics.jsonl" for name in ("one", "two")]
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not all(m.exists() and m.stat().st_size > 0 for m in metrics):
        time.sleep(0.02)
    statuses = {
        name: json.loads((tmp_path / "out" / name / "status.json").read_text())["status"] for name in ("one", "two")
    }
    assert statuses == {"one": "running", "two": "running"}
    assert not (tmp_path / "out" / "three").exists()
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 75, output
    for name in ("one", "two"):
        status = json.loads((tmp_path / "out" / name / "status.json").read_text())
        assert status["status"] == "preempted"
        assert (tmp_path / "out" / name / "checkpoints" / f"step_{status['step']:08d}").is_dir()
    result = python(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for name in ("one", "two", "three"):
        assert [row["step"] for row in rows_of(tmp_path / "out" / name)] == list(range(1, 61))
        assert "finished: validation NLL" in (tmp_path / "out" / "logs" / f"{name}.log").read_text()
        assert f"{name}: finished: validation NLL" in result.stdout


def test_a_bad_run_among_others_ends_the_suite_with_its_status(workspace, tmp_path):
    runs = "  good: []\n  bad: [optimizer.lr=-1]\n  late: []"
    (tmp_path / "suite.yaml").write_text(f"recipe: {workspace}/tiny.yaml\nout: out\nruns:\n{runs}\n")
    result = python(ROOT / "run_suite.py", "suite.yaml", "--jobs", "2", cwd=tmp_path)
    assert result.returncode == 2
    assert "bad: " in result.stdout
    assert "optimizer.lr" in result.stdout.split("bad: ")[-1]
    assert not (tmp_path / "out" / "late").exists()


def test_a_mistake_in_a_suite_is_one_line(tmp_path):
    (tmp_path / "suite.yaml").write_text("recipe: x.yaml\nout: out\nrun: {}\n")
    result = python(ROOT / "run_suite.py", "suite.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "suite.yaml: runs:" in result.stderr
    assert "suite.yaml: run:" in result.stderr


def test_a_suite_repeats_its_runs_over_seeds(workspace, tmp_path):
    """One seed after the other, each run in a folder of its own; a name in an analysis stands for all its seeds."""
    (tmp_path / "suite.yaml").write_text(
        f"recipe: {workspace}/tiny.yaml\nout: out\nseeds: [3, 5]\n"
        "runs:\n  first: [train.steps=6]\n  second: [train.steps=6]\n"
        "analyses:\n  - summary {second} --out {out}/summary\n"
    )
    result = python(ROOT / "run_suite.py", "suite.yaml", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    names = ["first_seed3", "second_seed3", "first_seed5", "second_seed5"]
    started = [line.partition(" name=")[2].partition(" ")[0] for line in result.stdout.splitlines() if " name=" in line]
    assert started == names
    for name in names:
        assert f"\nseed: {name[-1]}\n" in (tmp_path / "out" / name / "config.yaml").read_text()
    assert rows_of(tmp_path / "out" / "first_seed3") != rows_of(tmp_path / "out" / "first_seed5")
    summary = json.loads((tmp_path / "out" / "summary" / "summary.json").read_text())
    assert [run["arm"] for run in summary["runs"]] == ["second_seed3", "second_seed5"]

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


def test_a_mistake_in_a_suite_is_one_line(tmp_path):
    (tmp_path / "suite.yaml").write_text("recipe: x.yaml\nout: out\nrun: {}\n")
    result = python(ROOT / "run_suite.py", "suite.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "suite.yaml: runs:" in result.stderr
    assert "suite.yaml: run:" in result.stderr

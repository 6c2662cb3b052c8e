"""A reader of a command's tables may close the pipe, as head does: what the command writes is there all the same."""

import subprocess
import sys

import pytest

from common.command import EXIT_BROKEN_PIPE

from ..conftest import ROOT
from .written import write_run


@pytest.mark.parametrize(
    ("command", "files"),
    [
        ("summary", {"summary.json", "summary.csv", "summary.md"}),
        ("spikes", {"events.json", "spikes.png"}),
        ("stability", {"stability.md", "stability.json", "runs.csv", "comparisons.csv", "curves.png"}),
    ],
)
def test_the_files_are_written_before_the_tables_are_printed(command, files, tmp_path):
    rows = [{"step": step, "loss/nll": 6.0 - step / 50, "validation/nll": 5.0} for step in range(1, 41)]
    config = {"seed": 0, "optimizer": {"lr": 0.001}, "train": {"steps": 40}}
    run = write_run(tmp_path / "run", rows, config=config)
    process = subprocess.Popen(
        [sys.executable, "-m", f"analysis.{command}", str(run), "--out", str(tmp_path / "out")],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.close()
    assert process.communicate(timeout=120)[1] == b""
    assert process.returncode == EXIT_BROKEN_PIPE
    assert {path.name for path in (tmp_path / "out").iterdir()} >= files

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from analysis.report.__main__ import main
from analysis.report.follow import follow
from analysis.report.material import Material, read_material
from common.command import exit_status
from tests.analysis.written import training_rows, write_run


def test_a_page_follows_a_run_to_its_end(tmp_path: Path) -> None:
    rows = [{key: row[key] for key in ("step", "loss/nll")} for row in training_rows(80)]
    out = tmp_path / "page.html"
    run = write_run(tmp_path / "run", rows[:40], status="running")
    seen: list[str] = []

    def train() -> None:
        while not out.exists():
            time.sleep(0.02)
        seen.append(out.read_text(encoding="utf-8"))
        with (run / "metrics.jsonl").open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows[40:])
        (run / "status.json").write_text(json.dumps({"status": "finished", "step": 80, "reason": ""}))

    thread = threading.Thread(target=train)
    thread.start()
    assert exit_status(lambda: main([str(run), "--out", str(out), "--follow", "--every", "1"])) == 0
    thread.join()
    last = out.read_text(encoding="utf-8")
    assert '<meta http-equiv="refresh" content="1">' in seen[0]
    assert "is at step 40 (it still runs, or was killed)" in seen[0]
    assert '<meta http-equiv="refresh"' not in last
    assert "ran to its end, step 80" in last
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_run_that_makes_its_tokens_is_waited_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Another process has its lock, and has logged nothing yet."""
    run, out = tmp_path / "run", tmp_path / "page.html"
    written = write_run(tmp_path / "written", training_rows(30))
    script = (
        "import sys, time; from pathlib import Path; from record.lock import run_lock\n"
        "run, written = map(Path, sys.argv[1:])\n"
        "with run_lock(run):\n"
        "    print(flush=True)\n"
        "    time.sleep(1)\n"
        "    for name in ('config.yaml', 'events.jsonl', 'status.json', 'metrics.jsonl'):\n"
        "        (written / name).rename(run / name)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(run), str(written)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert exit_status(lambda: main([str(run), "--out", str(out), "--follow", "--every", "1"])) == 0
    assert f"{run} has no rows yet; waiting for the first" in capfd.readouterr().out
    assert "ran to its end, step 30" in out.read_text(encoding="utf-8")


def test_ctrl_c_leaves_a_page_that_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    material = read_material([str(write_run(tmp_path / "run", training_rows(30), status="running"))])
    written: list[int | None] = []

    def interrupted() -> Material:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    follow(material, interrupted, lambda found, refresh: written.append(refresh), 5)
    assert written == [5, None]

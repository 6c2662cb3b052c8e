"""The suite runner in real processes: runs, comparison, interruption, and going on."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
from accelerate.state import AcceleratorState
from tqdm import tqdm

from common.errors import InputError
from common.processes import ending, last_lines
from configs.load import load_config
from run_suite import main
from suite.held import wait_until_free
from suite.schedule import Interrupted
from train_lm import train

from ..conftest import ROOT, called, events_of, python, rows_of, wait_for

SUITE = """
recipe: {workspace}/tiny.yaml
out: out
seeds: [3, 5]
arms:
  metric: [train.steps=100, checkpoint.every=30]
  linear: [train.steps=100, head.kind=linear, objective.kind=ce]
analyses:
  - curves {{runs}} --out {{out}}/curves.png
  - summary {{metric}} --out {{out}}/summary
control: []
next: ["{{out}}/curves.png"]
"""


def table_of(output):
    """How each run ended, by the table at the end of a suite's output."""
    rows = output[output.rindex("\nrun  ") :].strip().split("\n\n")[0].splitlines()[1:]
    return dict(re.split("  +", row)[:2] for row in rows)


def test_an_interrupted_suite_goes_on_where_it_was(workspace, tmp_path, monkeypatch):
    """Two of four at a time, away from the project; one is done already, two are stopped under way, then all are done.

    Each has what it printed in a file of its own. A name in an analysis stands for all its seeds.
    """
    (tmp_path / "suite.yaml").write_text(SUITE.format(workspace=workspace))
    out, seeds = tmp_path / "out", {name: [f"{name}_seed3", f"{name}_seed5"] for name in ("metric", "linear")}
    monkeypatch.chdir(tmp_path)
    done = ["output_dir=out", "name=linear_seed5", "train.steps=100", "head.kind=linear", "objective.kind=ce", "seed=5"]
    AcceleratorState._reset_state(reset_partial_state=True)
    assert train(load_config(workspace / "tiny.yaml", done)) == 0
    written = (out / "linear_seed5" / "metrics.jsonl").stat().st_mtime_ns

    command = [sys.executable, str(ROOT / "run_suite.py"), "suite.yaml", "--jobs", "2"]
    under_way = [seeds["metric"][0], seeds["linear"][0]]
    status, output = stopped_when_under_way(command, out, under_way)
    assert status == 75, output
    assert table_of(output) == dict.fromkeys(under_way, "stopped") | {
        "metric_seed5": "not started",
        "linear_seed5": "finished",
    }
    assert "not made" in output
    for name in under_way:
        state = json.loads((out / name / "status.json").read_text())
        assert state["status"] == "preempted"
        assert (out / name / "checkpoints" / f"step_{state['step']:08d}").is_dir()

    result = called(main, *command[2:], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert table_of(result.stdout) == dict.fromkeys([*seeds["metric"], *seeds["linear"]], "finished")
    assert (out / "linear_seed5" / "metrics.jsonl").stat().st_mtime_ns == written
    rows = {name: rows_of(out / name) for names in seeds.values() for name in names}
    assert all([row["step"] for row in of_run] == list(range(1, 101)) for of_run in rows.values())
    for name in ("metric_seed3", "linear_seed3", "metric_seed5"):
        assert "finished: validation NLL" in (out / "logs" / f"{name}.log").read_text()
        assert f"{name}: finished: validation NLL" in result.stdout
    for path in ("curves.png", "summary/summary.md"):
        assert (out / path).stat().st_size > 100
    assert result.stdout.endswith("What to look at next:\n  out/curves.png\n")

    for seed in (3, 5):
        assert f"\nseed: {seed}\n" in (out / f"metric_seed{seed}" / "config.yaml").read_text()
    assert rows["metric_seed3"] != rows["metric_seed5"]
    summary = json.loads((out / "summary" / "summary.json").read_text())
    assert [run["arm"] for run in summary["runs"]] == seeds["metric"]
    # In the table: the last evaluation, and its difference from the baseline's run with the same seed.
    base, own = (rows[f"{arm}_seed5"][-1]["validation/nll"] for arm in ("metric", "linear"))
    difference = re.escape(format(own - base, "+.4f"))
    assert re.search(rf"\nlinear_seed5 +finished +100 +{own:.4f} +{difference}\n", result.stdout)


def stopped_when_under_way(command, out, names):
    """Start a suite and stop it once these runs have rows; its status and output.

    The first of them has the signal as well, and so has what all are forks of, as schedulers send it to all processes; the others
    have it from the suite alone.
    """
    process = subprocess.Popen(command, cwd=out.parent, stdout=subprocess.PIPE, text=True)
    metrics = [out / name / "metrics.jsonl" for name in names]
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not all(m.exists() and m.stat().st_size > 0 for m in metrics):
        time.sleep(0.02)
    states = [json.loads((out / name / "status.json").read_text())["status"] for name in names]
    assert states == ["running"] * len(names)
    (server,) = [each for each in psutil.Process(process.pid).children() if each.children()]
    reached = json.loads((out / names[0] / ".lock").read_text())["process"]
    for number in (process.pid, server.pid, reached):
        os.kill(number, signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    return process.returncode, output


def test_runs_outlive_what_they_are_forks_of_and_end_with_their_suite(workspace, tmp_path):
    """Both are killed outright: first the fork server, and the next run has a new one; then the suite, and the run that was under
    way stops after a checkpoint, from which the same command goes on."""
    (tmp_path / "suite.yaml").write_text(
        f"recipe: {workspace}/tiny.yaml\nout: out\noverrides: [checkpoint.every=100]\n"
        "arms:\n  first: [train.steps=30]\n  second: [train.steps=100]\n"
    )
    out, command = tmp_path / "out", [sys.executable, str(ROOT / "run_suite.py"), "suite.yaml"]
    with (tmp_path / "said").open("wb") as said:
        suite = subprocess.Popen(command, cwd=tmp_path, stdout=said, stderr=subprocess.STDOUT)
    wait_for(lambda: rows_so_far(out / "first"), suite, "a row of the first run")
    (server,) = [each for each in psutil.Process(suite.pid).children() if each.children()]
    server.kill()
    wait_for(lambda: rows_so_far(out / "second"), suite, "a row of the second run")
    run = psutil.Process(json.loads((out / "second" / ".lock").read_text())["process"])
    suite.kill()
    suite.wait()
    output = (tmp_path / "said").read_text()
    assert "note: first: the process that it is a fork of was killed; it goes on, and others get a new one\n" in output
    assert "first: finished: validation NLL" in output

    result = called(main, *command[2:], cwd=tmp_path)
    assert not run.is_running() or run.status() == psutil.STATUS_ZOMBIE  # it was forked by this process
    assert result.returncode == 0, result.stdout + result.stderr
    assert table_of(result.stdout) == {"first": "finished", "second": "finished"}
    assert "1 of 2 runs have ended already\n" in result.stdout
    (stop,) = [event for event in events_of(out / "second") if event["event"] == "preempted"]
    (went_on,) = [event for event in events_of(out / "second") if event["event"] == "resume"]
    assert stop["step"] == went_on["step"] < 100
    assert [row["step"] for row in rows_of(out / "second")] == [*range(1, 101)]


def rows_so_far(run):
    """How many rows a run has written, in bytes."""
    metrics = run / "metrics.jsonl"
    return metrics.stat().st_size if metrics.exists() else 0


HOLDER = """
import sys, time
from pathlib import Path
from record.lock import run_lock

with run_lock(Path(sys.argv[1])):
    print(flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_a_run_that_something_else_writes_is_waited_for(tmp_path, capsys):
    """For a while; then the process is named."""
    (tmp_path / "free").mkdir()
    for seconds, patience in ((1, 60), (60, 0.3)):
        with subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path / "held"), str(seconds)], cwd=ROOT, stdout=subprocess.PIPE
        ) as process:
            process.stdout.readline()
            if seconds > patience:
                told = f"{tmp_path}/held: process {process.pid} on {socket.gethostname()} is writing this run; wait for it, or"
                with pytest.raises(InputError, match=re.escape(told)):
                    wait_until_free(tmp_path, ["free", "held", "never"], patience)
                process.kill()
            else:
                wait_until_free(tmp_path, ["free", "held", "never"], patience)
        assert f"waiting for 1 run that was started before to end: process {process.pid} on" in capsys.readouterr().out
    wait_until_free(tmp_path, ["free", "held", "never"])
    assert capsys.readouterr().out == ""


FATAL = """
import os, signal
from dataclasses import dataclass
from model import Objective, register_objective

calls = 0

@register_objective("fatal")
class Fatal(Objective):
    @dataclass(frozen=True)
    class Options:
        killed: bool = False

    def loss(self, t):
        global calls
        calls += 1
        if calls > 20:
            if self.options.killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("no more")
        return t.negatives - t.true
"""


def test_what_became_of_each_run_is_told_and_the_others_go_on(workspace, tmp_path):
    """Real deaths: one run is killed as by a system without memory, one ends with a traceback. To diverge is a result."""
    (tmp_path / "fatal.py").write_text(FATAL)
    fatal = f"'plugins=[{tmp_path}/fatal.py]', objective.kind=fatal"
    (tmp_path / "suite.yaml").write_text(
        f"recipe: {workspace}/tiny.yaml\nout: out\narms:\n"
        f"  killed: [{fatal}, objective.killed=true]\n  broken: [{fatal}]\n"
        '  "1e18": [optimizer.lr=1e18, optimizer.clip_norm=null]\n  good: [train.steps=6]\n'
        "analyses:\n"
        "  - summary {runs} --out {out}/all\n"
        "  - curves {good}\n"
        "  - summary {good} {1e18} --out {out}/two\n"
        "next: [never told]\n"
    )
    result = called(main, "suite.yaml", cwd=tmp_path)
    assert result.returncode == 128 + signal.SIGKILL
    assert table_of(result.stdout) == {
        "killed": "killed by SIGKILL: probably out of memory",
        "broken": "failed with status 1",
        "1e18": "diverged",
        "good": "finished",
    }
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {"killed", "broken", "1e18", "good", "logs", "two", "suite.json"}
    end = result.stdout[result.stdout.rindex("\nrun  ") :]
    assert "analysis.summary: not made, without killed, broken\n" in end
    assert "killed: killed by SIGKILL: probably out of memory; the end of out/logs/killed.log:\n  | " in end
    assert re.search(r"\n  \| killed: +\d+%\|.*\nbroken: ", end)  # the half-drawn progress bar comes last
    assert "broken: failed with status 1; the end of out/logs/broken.log:\n" in end
    assert "\n  | RuntimeError: no more\n" in end
    assert "analysis_1_curves: failed with status 2; " in end
    assert "the following arguments are required: --out\n" in end
    assert "\r" not in end
    assert "never told" not in end


def test_mistakes_are_told_before_any_run_starts(workspace, tmp_path):
    """Each once, with the runs that it is in."""
    runs = "  good: []\n  bad: [optimizer.lr=-1]\n  late: [optimizer.lr=-1, name=early]"
    (tmp_path / "suite.yaml").write_text(f"recipe: {workspace}/tiny.yaml\nout: out\narms:\n{runs}\n")
    result = called(main, "suite.yaml", "--jobs", "2", cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: bad, late: optimizer.lr: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("analyses: ['summary {run} --out {out}']", "analyses: {run}: unknown placeholder"),
        ("analyses: ['sumary {runs}']", "analyses: sumary {runs}: there is no analysis.sumary"),
        ("""analyses: ['summary "{runs}']""", "cannot be read: No closing quotation"),
        ("analyses: ['']", "analyses: '' cannot be read"),
        ("next: ['{runs}']", "next: {runs}: unknown placeholder; there are {out}"),
    ],
)
def test_mistakes_in_what_follows_the_runs_are_told_before_them(lines, told, tmp_path, monkeypatch):
    suite = tmp_path / "suite.yaml"
    suite.write_text(f"recipe: none.yaml\nout: out\narms: {{one: []}}\n{lines}\n")
    monkeypatch.setattr(sys, "argv", ["run_suite.py", str(suite)])
    with pytest.raises(InputError, match=re.escape(told)):
        main()


def test_how_a_process_ended_is_told_in_words():
    """Of real processes: a status, a signal, and one that has no name."""
    for code, told in (
        ("raise SystemExit(74)", "failed with status 74"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL: probably out of memory"),
        ("import os; os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
        ("import os; os.kill(os.getpid(), 40)", "killed by signal 40"),
    ):
        assert ending(subprocess.run([sys.executable, "-S", "-c", code], check=False, timeout=60).returncode) == told


def test_the_last_lines_of_a_log_are_as_a_terminal_showed_them(tmp_path):
    log = tmp_path / "run.log"
    with log.open("w") as file:
        file.write("an earlier start\n")
        file.flush()
        start = log.stat().st_size
        with tqdm(total=40, desc="run", file=file, mininterval=0) as bar:
            bar.update(10)
            tqdm.write("a spike\n\x1b[31mred\x1b[0m", file=file)
            bar.update(20)
        bar = tqdm(total=40, desc="more", file=file, mininterval=0)
        bar.update(30)
        file.flush()
        said = last_lines(log, 9, start)
        bar.close()
    assert said[:2] == ["a spike", "red"]
    assert [line.partition("|")[0] for line in said[2:]] == ["run:  75%", "more:  75%"]
    assert last_lines(log, 1, start)[0].startswith("more:  75%|")
    assert last_lines(log, 1, log.stat().st_size) == []


@pytest.mark.parametrize(("before", "heard"), [(signal.default_int_handler, True), (signal.SIG_IGN, False)])
def test_a_suite_in_the_background_of_a_script_does_not_hear_ctrl_c(before, heard):
    """A shell starts it with SIGINT ignored, and it stays ignored."""
    usual = signal.signal(signal.SIGINT, before)
    try:
        interrupted = Interrupted()
        with interrupted.listening():
            signal.raise_signal(signal.SIGINT)
        assert interrupted.received == heard
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, usual)


def test_a_mistake_in_a_suite_is_one_line(tmp_path):
    (tmp_path / "suite.yaml").write_text("recipe: x.yaml\nout: out\narm: {}\n")
    result = python(ROOT / "run_suite.py", "suite.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "error: suite.yaml: arms: is required and has no default\n" in result.stderr
    assert "error: suite.yaml: arm: unknown key; did you mean arms?\n" in result.stderr

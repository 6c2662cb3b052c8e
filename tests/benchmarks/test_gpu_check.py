"""The one command for a machine with a GPU: what it does with parts that fail, hang or lack a package, and all of it on a CPU."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu_check import report as reports
from benchmarks.gpu_check.names import LOOP, SILENT
from benchmarks.gpu_check.packages import name_of, required, unpack
from benchmarks.gpu_check.parts import PARTS, Outcome, Part, run_part
from benchmarks.gpu_check.report import Report, lines_in, markdown, write_report

from ..conftest import ROOT, python, wait_for


@dataclasses.dataclass(frozen=True)
class Script(Part):
    """A part that runs some Python."""

    code: str = ""

    def command(self, lines, seconds, device, environment):
        return [sys.executable, "-c", self.code]


def run(code, tmp_path, seconds=20.0, name="loss_table"):
    looks = []
    part = Script(name, 1, code)
    environment = dict(os.environ)
    outcome = run_part(
        part, tmp_path / f"{name}.jsonl", tmp_path / "log", seconds, "cpu", environment, lambda: looks.append(1)
    )
    return outcome, len(looks)


def test_a_part_that_ends_has_no_problem(tmp_path):
    code = "import os; print(os.environ['GPU_CHECK_DEVICE'], os.environ['GPU_CHECK_LINES'])"
    outcome, _ = run(code, tmp_path)
    assert outcome.problem is None
    assert (tmp_path / "log").read_text() == f"==== loss_table\ncpu {tmp_path / 'loss_table.jsonl'}\n"


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("print('so far'); raise ValueError('no such card')", "failed with status 1: ValueError: no such card"),
        ("import os; os.kill(os.getpid(), 11)", "killed by SIGSEGV: no output"),
    ],
)
def test_a_part_that_fails_is_named_with_its_last_line(tmp_path, code, problem):
    assert run(code, tmp_path)[0].problem == problem


def test_a_part_that_hangs_is_killed_with_its_children_and_keeps_its_lines(tmp_path):
    code = f"""
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
with open({str(tmp_path / "loss_table.jsonl")!r}, "w") as file:
    file.write('{{"table": "loss", "child": %d}}\\n{{"table": "lo' % child.pid)
time.sleep(60)
"""
    outcome, looks = run(code, tmp_path, seconds=5)
    assert outcome.problem == "ended after its 5 s"
    assert looks >= 1
    (line,) = lines_in(tmp_path)
    for _ in range(50):  # a killed child is gone as soon as init has seen it
        try:
            os.kill(line["child"], 0)
        except ProcessLookupError:
            break
        state = (tmp_path.__class__("/proc") / str(line["child"]) / "stat").read_text().split(") ")[1][0]
        if state == "Z":
            break
        time.sleep(0.1)
    else:
        raise AssertionError("the child still runs")


def a_wheel(folder, name, content):
    with zipfile.ZipFile(folder / name, "w") as wheel:
        wheel.writestr("carried_along.py", content)
        wheel.writestr(
            "carried_along-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carried-along\nVersion: 1.0\n"
        )


def test_packages_are_unpacked_from_wheels_beside_the_environment(tmp_path):
    """Of the version asked for, for this Python; those that are not there are reported."""
    wheels, folder = tmp_path / "wheels", tmp_path / "packages"
    wheels.mkdir()
    a_wheel(wheels, "carried_along-1.0-py2.py3-none-any.whl", "VALUE = 7\n")
    a_wheel(wheels, "carried_along-0.9-py3-none-any.whl", "VALUE = 6\n")
    a_wheel(wheels, "other_python-1.0-cp38-cp38-manylinux2014_x86_64.whl", "VALUE = 5\n")
    wanted = ["Carried.Along==1.0", "left-behind==2.0", "other-python==1.0"]
    assert unpack(wanted, wheels, folder) == ["left-behind==2.0", "other-python==1.0"]
    code = "import carried_along, importlib.metadata as m; print(carried_along.VALUE, m.version('carried-along'))"
    assert python("-c", code, PYTHONPATH=str(folder)).stdout == "7 1.0\n"


def test_the_list_of_packages_has_the_versions_of_the_other_lists():
    others = {}
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text().splitlines():
            if found := re.match(r"([\w.-]+)==([\w.]+)", line):
                others[found[1].lower()] = found[2]
    listed = dict(requirement.split("==") for requirement in required())
    assert {name: others[name] for name in listed if name in others} == {
        name: version for name, version in listed.items() if name in others
    }
    assert "pydantic" in listed
    assert name_of("pydantic-core>=2") == "pydantic-core"


def a_report(**changes):
    given = {"date": "2026-01-01T00:00+00:00", "commit": "abc", "device": "cuda", "minutes": 9.0}
    return Report(**given | changes)


MACHINE = {"table": "machine", "name": "NVIDIA X", "memory_gib": 80.0, "driver": "580.1", "packages": {"triton": None}}


def test_an_empty_report_says_that_nothing_ran(tmp_path):
    write_report(a_report(), tmp_path)
    text = (tmp_path / reports.MARKDOWN_NAME).read_text()
    for part in PARTS:
        assert f"- {part.name}: not started" in text
    assert json.loads((tmp_path / reports.JSON_NAME).read_text())["failures"]


def test_what_fell_short_comes_first():
    lines = [
        MACHINE,
        {"table": "planned_tests", "tests": ["tests/gpu/test_a.py::test_x", "tests/gpu/test_a.py::test_y"]},
        *(
            {"table": "tests", "test": f"tests/gpu/test_a.py::{name}", "outcome": outcome, "seconds": 1.5, "message": m}
            for name, outcome, m in (("test_x", "failed", "max error 3e-2 at [7]"), ("test_z", "skipped", "needs fp8"))
        ),
        {"table": "left_out", "part": "loss_table", "what": "N=32768", "why": "no time left"},
        {"table": "training", "group": "eager", "contestant": "loop", "error": "ValueError: no such thing"},
        {"table": "loss", "N": 8, "D": 4, "V": 9, "contestant": "Liger", "error": "ModuleNotFoundError: no liger"},
        *2 * [{"table": "profile", "arm": "linear+CE", "error": "RuntimeError: nothing recorded"}],
        {"table": "kernel", "part": "loss", "columns": 50304, "name": "triton", "reason": None},
        {"table": "kernel", "part": "training", "columns": 50257, "name": "torch", "reason": "it does not compile"},
    ]
    outcomes = [Outcome("machine", 9.0), Outcome("tests", 50.0, "ended after its 50 s"), Outcome("loss_table", 3.0)]
    report = a_report(lines=lines, outcomes=outcomes, running="training_table", missing_packages=["orjson==3.13.0"])
    failures = report.failures()
    assert failures == [
        "test tests/gpu/test_a.py::test_x: failed",
        "tests: ended after its 50 s",
        "tests: 1 of tests/gpu/test_a.py did not begin",
        "loop (eager): ValueError: no such thing",
        "linear+CE (profile): RuntimeError: nothing recorded",
        "training: without the Triton kernel at V = 50,257: it does not compile",
        "loss_table: N=32768 left out: no time left",
        "profile_step: not started",
    ]
    text = markdown(report, failures)
    assert text.index("What fell short") < text.index("max error 3e-2 at [7]")
    assert "| tests/gpu/test_a.py | 0 | 1 | 1 | 1 | 3.0 |" in text
    assert "- tests/gpu/test_a.py::test_z: needs fp8" in text
    assert "**Unfinished: training_table was running when this was written.**" in text
    assert "80.0 GiB, driver 580.1" in text
    assert "triton not installed" in text
    assert "Not installed here and without a wheel: orjson==3.13.0." in text


def test_of_tests_without_a_result_those_that_had_begun_are_named():
    tests = ["tests/gpu/test_a.py::test_x", *(f"tests/gpu/test_b.py::test_y[{i}]" for i in range(100))]
    lines = [{"table": "planned_tests", "tests": tests}, {"table": "started_tests", "test": tests[7]}]
    found = [failure for failure in a_report(lines=lines).failures() if "not started" not in failure]
    assert found == [
        f"tests: {tests[7]} began and did not end",
        "tests: 1 of tests/gpu/test_a.py did not begin",
        "tests: 99 of tests/gpu/test_b.py did not begin",
    ]


def test_missed_targets_of_a_gpu_are_among_what_fell_short():
    ratio = {"table": "training_ratio", "group": "eager", "above": LOOP, "below": SILENT, "blocks": 6}
    lines = [MACHINE, ratio | {"middle": 1.2, "low": 1.1, "high": 1.3}]
    first = {
        device: markdown(a_report(lines=lines, device=device), []).split("## Tests")[0] for device in ("cuda", "cpu")
    }
    assert "- telemetry costs at most 1% of a step: 1.200 [1.100, 1.300], missed by 18.8%\n" in first["cuda"]
    assert "missed" not in first["cpu"]


def test_tests_run_side_by_side_if_the_plug_in_is_among_the_unpacked_packages(tmp_path, monkeypatch):
    tests = next(part for part in PARTS if part.name == "tests")
    monkeypatch.setattr(sys, "path", [])
    commands = []
    for _ in range(2):
        commands.append(tests.command(tmp_path, 1, "cuda", {"PYTHONPATH": f"/nowhere{os.pathsep}{tmp_path}"}))
        (tmp_path / "xdist.py").touch()
    assert ["-n" in command for command in commands] == [False, True]


def test_a_terminated_check_ends_its_part_and_keeps_what_is_known(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu", "--out", tmp_path]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as check:
        try:
            wait_for((tmp_path / "tests.jsonl").exists, check, "the tests begin")
            (child,) = Path(f"/proc/{check.pid}/task/{check.pid}/children").read_text().split()
            check.terminate()
            told = check.communicate(timeout=60)[1]
        finally:
            check.kill()
    assert (check.returncode, told) == (130, "interrupted\n")
    assert not Path("/proc", child).exists()
    found = json.loads((tmp_path / reports.JSON_NAME).read_text())
    assert found["running"] == "tests"
    assert any(line["table"] == "planned_tests" for line in found["lines"])


def test_mistakes_are_told_in_a_line(tmp_path):
    done = python("-m", "benchmarks.gpu_check", "--out", tmp_path, "--minutes", "0.1")
    assert (done.returncode, done.stderr) == (2, "error: --minutes: must be at least 0.5, but is 0.1\n")


def test_without_a_gpu_it_says_so(tmp_path):
    done = python("-m", "benchmarks.gpu_check", "--out", tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    reason = "no CUDA device is visible to torch; --device cpu tries the command without one"
    assert done.stderr == f"error: --device cuda: cannot be used: {reason}\n"

"""The one command for a machine with a GPU, all of it on a CPU: every part, on tiny sizes, in processes of their own."""

import json

import pytest

from benchmarks.gpu_check import loss_table
from benchmarks.gpu_check import report as reports
from benchmarks.gpu_check.kernel_groups import OTHER
from benchmarks.gpu_check.lines import read_lines
from benchmarks.gpu_check.names import WHOLE
from benchmarks.gpu_check.parts import PARTS
from benchmarks.gpu_check.tables import report
from benchmarks.throughput import LINEAR, METRIC

from ..conftest import ROOT, python
from ..gpu.conftest import FIRST_ONLY, LONGEST
from .test_gpu_tables import by_table, last

pytestmark = pytest.mark.timeout(960)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder that the command has filled. Of tests/gpu it ran the first test of each file but one."""
    out = tmp_path_factory.mktemp("whole")
    arguments = ("--device", "cpu", "--minutes", "9", "--out", out)
    done = python("-m", "benchmarks.gpu_check", *arguments, timeout=900, **{FIRST_ONLY: "1"})
    assert json.loads((out / reports.JSON_NAME).read_text())["failures"] == []
    assert done.returncode == 0, done.stderr
    return out


def test_all_parts_run_and_tests_of_the_files(whole):
    found = json.loads((whole / reports.JSON_NAME).read_text())
    assert [outcome["name"] for outcome in found["outcomes"]] == [part.name for part in PARTS]
    tests = [line for line in found["lines"] if line["table"] == "tests"]
    assert {line["outcome"] for line in tests} == {"passed", "skipped"}
    files = {path.name for path in (ROOT / "tests" / "gpu").glob("test_*.py")} - {LONGEST}
    assert sorted(line["test"].partition("::")[0] for line in tests) == sorted(f"tests/gpu/{name}" for name in files)
    text = (whole / reports.MARKDOWN_NAME).read_text()
    assert "Nothing: every part ran to its end and every test passed." in text


def test_the_loss_part_measures_all_contestants_of_all_shapes(whole):
    found = by_table(read_lines(whole / "loss_table.jsonl"))
    measured = last(found["loss"], "N", "D", "V", "contestant")
    shapes = loss_table.SHAPES["cpu"]
    assert measured.keys() == {(*s, c) for s in shapes for c in (WHOLE, loss_table.IN_CHUNKS, *loss_table.CONTESTANTS)}
    for (*_, name), line in measured.items():
        if "error" in line:  # only what is not installed
            assert line["error"].startswith(("ImportError", "ModuleNotFoundError")), line
            assert not name.startswith("ours")
        else:
            assert 0 < line["low"] <= line["ms"] <= line["high"]
            assert 3 <= line["rounds"] <= 15
            assert line["ratio"] > 0
            assert ("tflops" in line) == (name == WHOLE)
            assert (line["memory_mib"] is None) == name.startswith("three matmuls")
    assert {line["rows"] for line in found["chunks"] if "rows" in line} == set(loss_table.CHUNKS["cpu"])
    assert "left_out" not in found
    assert [(line["columns"], line["name"], line["reason"]) for line in found["kernel"]] == [
        (columns, "torch", None) for *_, columns in shapes
    ]
    text = report([line for one in found.values() for line in one])
    assert "Softmax of this project's losses, unless named otherwise: torch at V = 100, torch at V = 60." in text


def test_the_profile_part_shares_out_the_time_of_a_step(whole):
    found = by_table(read_lines(whole / "profile_step.jsonl"))
    assert [line["arm"] for line in found["profile"]] == [LINEAR, LINEAR, METRIC, METRIC]
    steps = {line["arm"]: line for line in found["profile"] if "wall_ms" in line}
    assert all(min(line["wall_ms"], line["host_ms"]) > 0 for line in steps.values())
    assert all(line["device_ms"] > 0 for line in found["profile"] if "wall_ms" not in line)
    for arm in (LINEAR, METRIC):
        groups = {line["group"]: line["share"] for line in found["profile_group"] if line["arm"] == arm}
        assert sum(groups.values()) == pytest.approx(1)
        assert groups.keys() >= {"matmul", "attention", "optimizer", "norms, telemetry", "layer norm", OTHER}
        kernels = [line for line in found["profile_kernel"] if line["arm"] == arm]
        assert [line["rank"] for line in kernels] == list(range(1, 16))
        assert [line["ms"] for line in kernels] == sorted((line["ms"] for line in kernels), reverse=True)

"""Arguments that are wrong, of every analysis command: status 2, a line that names the argument, no traceback, no results."""

import contextlib
import importlib
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from common.command import exit_status
from tests.analysis.written import training_rows, write_run
from tests.conftest import ROOT, python

FILES = {
    path.stem if path.parent.name == "analysis" else path.parent.name: path
    for pattern in ("*.py", "*/__main__.py")
    for path in (ROOT / "analysis").glob(pattern)
    if re.search(r"^def main\(", path.read_text("utf-8"), re.M) and path.stem != "results"
}
"""By command. (analysis.results renders the project's own pages, and takes no run.)"""
COMMANDS = sorted(FILES)
NEEDED = {
    "grammar": ["--baseline", "RUN", "--candidate", "RUN", "--out", "OUT"],
    "synonyms": ["--baseline", "RUN", "--candidate", "RUN", "--out", "OUT"],
    "replay": ["RUN", "--step", "5", "--out", "OUT"],
    "step": ["RUN", "--step", "5", "--out", "OUT"],
    "autopsy": ["RUN", "--step", "5", "--out", "OUT"],
    "curves": ["RUN", "--out", "OUT/figure.png"],
    "spikes": ["RUN", "--out", "OUT"],
    "stability": ["RUN", "--out", "OUT"],
    "claims": ["RUN", "--out", "OUT"],
    "report": ["RUN", "--out", "OUT/report.html"],
    "summary": ["RUN", "--out", "OUT"],
    "tolerance": ["RUN", "--out", "OUT"],
    "unknown": ["RUN", "--out", "OUT"],
    "probes": ["calibration", "RUN", "--out", "OUT"],
    "weights": ["--plugins", "RUN", "--out", "OUT"],
}
"""What each command cannot do without."""

fuzzed = settings(
    max_examples=25, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def refused(folder: Path, command: str, arguments: Sequence[str]) -> str:
    """What the command says of arguments that it must refuse, without writing anything."""
    before = sorted(folder.rglob("*"))
    module = importlib.import_module(".".join(FILES[command].relative_to(ROOT).with_suffix("").parts))
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = exit_status(lambda: module.main(list(arguments)))
        except SystemExit as error:  # argparse
            status = error.code
    assert status == 2, said.getvalue()
    assert "error: " in said.getvalue()
    assert "Traceback" not in said.getvalue()
    assert sorted(folder.rglob("*")) == before, "something was written"
    return said.getvalue()


def filled(folder: Path, command: str, run: str | Path) -> list[str]:
    """What the command needs, on ``run``, with results going to ``folder``/out."""
    return [part.replace("RUN", str(run)).replace("OUT", f"{folder}/out") for part in NEEDED[command]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory without a checkpoint."""
    return write_run(tmp_path / "run", training_rows(30))


def test_every_command_is_tried():
    assert set(COMMANDS) == set(NEEDED)


@pytest.mark.parametrize("command", COMMANDS)
def test_missing_arguments_are_named(tmp_path, command):
    assert "required" in refused(tmp_path, command, [])


NO_RUN = st.one_of(
    st.sampled_from(
        [
            "",
            ".",
            "/",
            "/dev/null",
            "/dev/zero",
            "/etc/passwd",
            "z" * 300,
            "z/" * 3000,
            "\0",
            "nowhere",
            "~",
            "$HOME",
            "é",
        ]
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="-"), min_size=1, max_size=30).map(lambda t: f"zz{t}"),
)


@pytest.mark.parametrize("command", COMMANDS)
@fuzzed
@given(path=NO_RUN)
@example(path="zz\x1b[31m")
@example(path="zz\nerror: invented")
def test_what_is_no_run_is_told_in_printable_lines(tmp_path, command, path):
    told = refused(tmp_path, command, filled(tmp_path, command, path))
    assert all(line.startswith("error: ") and line.isprintable() for line in told.splitlines())


@pytest.mark.parametrize("command", COMMANDS)
@fuzzed
@given(word=st.text("abcdefgh-=", min_size=1, max_size=12))
def test_an_unknown_option_is_named(tmp_path, command, word):
    option = f"--zz{word}"
    assert option in refused(tmp_path, command, [*filled(tmp_path, command, tmp_path), option])


@pytest.mark.parametrize("command", COMMANDS)
def test_two_dashes_are_no_value_of_any_option(tmp_path, command):
    write_once(tmp_path / "run")
    given_options = filled(tmp_path, command, tmp_path / "run")
    for option in [part for part in given_options if part.startswith("--")]:
        value = given_options.index(option) + 1
        told = refused(tmp_path, command, [*given_options[: value - 1], f"{option}=--", *given_options[value + 1 :]])
        assert f"error: argument {option}: " in told.splitlines()[-1]


NUMBERS = {
    "grammar": ["--documents", "--seed"],
    "synonyms": ["--contexts-per-word", "--min-contexts", "--seed"],
    "tolerance": ["--contexts-per-word", "--min-contexts", "--seed"],
    "replay": ["--step", "--sequences", "--window"],
    "step": ["--step", "--sequences"],
    "autopsy": ["--step", "--event"],
    "curves": ["--smooth"],
    "report": ["--every"],
}
NOT_COUNTS = st.one_of(
    st.integers(max_value=-1).map(str),
    st.sampled_from(["", "x", "1.5", "nan", "inf", "1e3", "0x5", "9" * 5000, "½", "5 5"]),
)


@pytest.mark.parametrize(("command", "option"), [(c, o) for c, options in NUMBERS.items() for o in options])
@fuzzed
@given(value=NOT_COUNTS)
def test_what_is_no_count_is_told_by_its_option(tmp_path, command, option, value):
    write_once(tmp_path / "run")
    told = refused(tmp_path, command, [*filled(tmp_path, command, tmp_path / "run"), f"{option}={value}"])
    assert option in told


def write_once(folder: Path) -> None:
    """A run directory, where there is none yet."""
    if not folder.exists():
        write_run(folder, training_rows(30))


WRONG = [
    ("curves", ["--x", "hours"], "--x"),
    ("curves", ["--out", "OUT/figure.exe"], "figure.exe"),
    ("curves", ["--out", "RUN/status.json/figure.png"], "figure.png"),
    ("spikes", ["--detector", "nothing"], "--detector"),
    ("spikes", ["--signal", "nothing"], "--signal"),
    ("spikes", ["--out", "RUN/status.json"], "status.json"),
    ("summary", ["--out", "RUN/status.json"], "status.json"),
    ("summary", ["--out", "/proc/nowhere"], "/proc/nowhere"),
    ("replay", ["--step", "31"], "--step 31"),
    ("replay", ["--step", "1" + "0" * 30], "--step 1000"),
    ("replay", ["--counterfactual", "skip=0"], "environment.json"),
    ("stability", ["--baseline", "nothing"], "--baseline"),
    ("stability", ["--out", "RUN/status.json"], "status.json"),
    ("claims", ["--baseline", "nothing"], "--baseline"),
    ("report", ["--baseline", "nothing"], "--baseline"),
    ("report", ["--out", "OUT/report.pdf"], "report.pdf"),
    ("report", ["--out", "RUN/status.json/report.html"], "report.html"),
    ("synonyms", ["--min-similarity", "x"], "--min-similarity"),
]


@pytest.mark.parametrize(
    ("command", "options", "named"), WRONG, ids=lambda v: " ".join(v)[:40] if isinstance(v, list) else str(v)[:20]
)
def test_a_wrong_value_is_told_by_its_option(run, command, options, named):
    given_options = [part.replace("RUN", str(run)).replace("OUT", f"{run.parent}/out") for part in options]
    told = refused(run.parent, command, [*filled(run.parent, command, run), *given_options])
    assert named in told


ONE_AFTER_THE_OTHER = """
import json, runpy, sys
for command, arguments in json.loads(sys.argv[1]).items():
    sys.argv = [command, *arguments]
    try:
        runpy.run_module(f"analysis.{command}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        print(command, end.code)
    print(f"end of {command}", file=sys.stderr)
"""


def test_a_process_ends_with_status_2_and_one_line(tmp_path):
    """Each command as ``python -m`` starts it; all in one process, which imports torch once."""
    given_options = {command: filled(tmp_path, command, "nowhere") for command in COMMANDS}
    code = (
        "-W",
        "ignore::RuntimeWarning",
        "-c",
        ONE_AFTER_THE_OTHER,
    )  # runpy warns of what one has imported of another
    done = python(*code, json.dumps(given_options), cwd=tmp_path, PYTHONPATH=os.fspath(ROOT))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{command} 2" for command in COMMANDS]
    told = done.stderr
    for command in COMMANDS:
        lines, _, told = told.partition(f"end of {command}\n")
        assert lines
        assert all(line.startswith("error: ") and "nowhere" in line for line in lines.splitlines()), command
    assert told == ""
    assert list(tmp_path.iterdir()) == []

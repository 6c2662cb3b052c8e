"""Run directories that are broken, or made up to harm their reader: every command says what is wrong in one line, or copes."""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from analysis import summary
from analysis.curves import __main__ as curves
from analysis.spikes import __main__ as spikes
from common.command import exit_status
from common.errors import InputError
from record.finished import checkpoint_state, checkpoints_of, resolve_checkpoint
from record.table import read_table
from tests.analysis.written import spike, training_rows, write_run

FILES = ("config.yaml", "metrics.jsonl", "events.jsonl", "status.json")
COMMANDS = {"summary": summary.main, "spikes": spikes.main, "curves": curves.main}

fuzzed = settings(
    max_examples=45, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory in which nothing is wrong yet."""
    return whole_run(tmp_path)


def whole_run(folder: Path) -> Path:
    """The same, made again where an example before has broken it."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    settings = {"head": {"kind": "metric", "scale": 2}, "objective": {"kind": "tfsd"}}
    return write_run(folder / "run", training_rows(30), events=[spike("loss/nll", 21)], config=settings)


def outcome(command: Callable[[list[str]], Any], run: Path, *options: str) -> tuple[int, list[str]]:
    """Exit status and lines of a command; what it refuses is told in printable lines, and leaves nothing behind."""
    out = run.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    place = out / "figure.png" if command is curves.main else out
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        status = exit_status(lambda: command([str(run), "--out", str(place), *options]))
    lines = errors.getvalue().splitlines()
    assert (status == 2) == bool(lines), lines
    assert all(line.startswith("error: ") and line.isprintable() for line in lines), lines
    assert status == 0 or not out.exists()
    return status, lines


JUNK = [
    *(b"", b"\0" * 64, bytes(range(256)), b"hello\n", b"null\n", b"[]\n", b"5\n", b'"x"\n', b"{}\n", b"[" * 5000),
    *("{}".encode("utf-16"), b"9" * 5000, b"{" * 200 + b"}" * 200, b"!!python/object/apply:os.system ['false']\n"),
]


@fuzzed
@given(file=st.sampled_from(FILES), junk=st.one_of(st.sampled_from(JUNK), st.binary(max_size=200)))
@example(file="config.yaml", junk=b"[" * 5000)
@example(file="metrics.jsonl", junk=b"[" * 100_000 + b"]" * 100_000)
@example(file="status.json", junk=b"[" * 5000)
def test_a_file_of_garbage_is_named_or_has_nothing_in_it_that_counts(tmp_path, file, junk):
    run = whole_run(tmp_path)
    (run / file).write_bytes(junk)
    status, lines = outcome(summary.main, run)
    if status == 2:
        assert all(str(run / file) in line for line in lines)
    else:
        assert file == "events.jsonl" or (file == "config.yaml" and junk.strip()), "only events may be missing"


@fuzzed
@given(data=st.data())
def test_a_file_cut_anywhere_is_read_or_named(tmp_path, data):
    run = whole_run(tmp_path)
    file = data.draw(st.sampled_from(FILES))
    whole = (run / file).read_bytes()
    (run / file).write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    status, lines = outcome(summary.main, run)
    assert status == 0 or all(str(run / file) in line for line in lines)


def _missing(path: Path) -> None:
    path.unlink()


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/at/all")


def _outside(path: Path) -> None:
    elsewhere = path.parent.parent / f"elsewhere_{path.name}"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("replace", [_missing, _folder, _loop, _dangling, _outside, _pipe, _device])
def test_what_is_no_file_of_the_run_is_named_and_not_read(run, file, replace):
    replace(run / file)
    status, lines = outcome(summary.main, run)
    assert status == (0 if (file, replace) == ("events.jsonl", _missing) else 2)
    assert all(str(run / file) in line or "config.yaml" in line for line in lines)


def test_a_link_within_the_run_is_a_file_of_the_run(run):
    (run / "metrics.jsonl").rename(run / "kept.jsonl")
    (run / "metrics.jsonl").symlink_to("kept.jsonl")
    assert outcome(summary.main, run) == (0, [])


ODD = ["x", None, [1], {"a": 1}, True, 1.5, -1, 10**30, 10**400, 2**63, "NaN", "5", "../../x", "\x1b[31m", 1e308]


@fuzzed
@given(
    key=st.sampled_from(["step", "loss/nll", "tokens", "", "$x_{"]), value=st.sampled_from(ODD), row=st.integers(0, 28)
)
def test_a_row_of_wrong_types_is_named_by_line_or_step(tmp_path, key, value, row):
    run = whole_run(tmp_path)
    rows = training_rows(30)
    rows[row][key] = value
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    status, lines = outcome(summary.main, run)
    assert status == 0 or all(str(run / "metrics.jsonl") in line for line in lines)
    good = value in ("NaN", None) or (isinstance(value, int | float) and value is not True and abs(value) < 1e300)
    if key != "step":
        assert status == (0 if good else 2)
    else:
        assert status == 2
    with contextlib.suppress(InputError):
        read_table(run / "metrics.jsonl", foreign=True)


KEYS = ["event", "signal", "start_step", "peak_step", "end_step", "height", "sigmas", "recovered"]


@fuzzed
@given(key=st.sampled_from(KEYS), value=st.sampled_from(ODD))
def test_an_event_of_wrong_types_is_named_by_its_line(tmp_path, key, value):
    run = whole_run(tmp_path)
    (run / "events.jsonl").write_text(
        json.dumps(spike("loss/nll", 5)) + "\n" + json.dumps({**spike("loss/nll", 21), key: value}) + "\n"
    )
    status, lines = outcome(summary.main, run)
    assert status == 0 or [line for line in lines if f"{run / 'events.jsonl'} line 2" in line and key in line] == lines
    if key in ("start_step", "peak_step", "end_step"):
        assert status == 2


@pytest.mark.parametrize("key", [*KEYS, None])
def test_an_event_without_a_key_that_is_read_is_named(run, key):
    (run / "events.jsonl").write_text(json.dumps({k: v for k, v in spike("loss/nll", 21).items() if k != key}) + "\n")
    assert outcome(summary.main, run)[0] == (0 if key in ("recovered", "height", "sigmas", None) else 2)


CONFIGS: list[dict[str, Any]] = [
    *({"name": name} for name in (5, [1], {"a": 1}, "../../x", "a\nb", "$x_{", "\x1b[31mred", "", True)),
    *(
        {"name": "run", "head": head}
        for head in (5, [1], {"kind": [1]}, {"kind": True, "scale": {"a": 1}}, {"kind": "\x1b[31m"})
    ),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_configuration_of_wrong_types_is_named_or_shown_harmlessly(run, config, capsys):
    (run / "config.yaml").write_text(json.dumps(config))
    status, lines = outcome(summary.main, run)
    assert status == (0 if config["name"] == "run" else 2)
    assert all(f"{run / 'config.yaml'}: name" in line for line in lines)


def test_the_table_of_a_configuration_that_colours_terminals_has_no_colour(run, capsys):
    (run / "config.yaml").write_text(json.dumps({"name": "run", "head": {"kind": "\x1b[31mred"}}))
    summary.main([str(run)])
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("status", [5, [1], None, "\x1b[31mred", "two\nlines"], ids=repr)
def test_a_status_that_is_no_text_is_named(run, status):
    (run / "status.json").write_text(json.dumps({"status": status, "step": 1}))
    assert outcome(summary.main, run)[1][0].startswith(f"error: {run / 'status.json'} ")


BREAKS: dict[str, Callable[[Path], object]] = {
    "torn line": lambda run: (run / "metrics.jsonl").write_text('{"step": 1, "lo\n{"step": 2, "loss/nll": 3.0}\n'),
    "one row": lambda run: (run / "metrics.jsonl").write_text('{"step": 1, "loss/nll": 3.0}\n'),
    "huge numbers": lambda run: (run / "metrics.jsonl").write_text(
        "".join(f'{{"step": {i}, "loss/nll": {(-1) ** i * 1e308}}}\n' for i in range(1, 30))
    ),
    "only NaN": lambda run: (run / "metrics.jsonl").write_text(
        "".join(f'{{"step": {i}, "loss/nll": "NaN"}}\n' for i in range(1, 30))
    ),
    "events of no spike": lambda run: (run / "events.jsonl").write_text('{"event": "spike"}\n'),
    "a spike beyond the run": lambda run: (run / "events.jsonl").write_text(
        json.dumps(spike("loss/nll", 10**15)) + "\n"
    ),
}


@pytest.mark.parametrize("name", BREAKS)
@pytest.mark.parametrize("command", ["curves", "spikes"])
def test_figures_of_broken_runs_are_drawn_or_refused(run, name, command):
    BREAKS[name](run)
    assert outcome(COMMANDS[command], run)[0] in (0, 2)


# ---------------------------------------------------------------------------------------------------------- checkpoints


def checkpoint(folder: Path) -> Path:
    """What looks like a complete checkpoint from outside."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_checkpoints_without_weights_of_other_names_or_elsewhere_do_not_count(run, tmp_path):
    good = checkpoint(run / "checkpoints" / "step_00000010")
    (checkpoint(run / "checkpoints" / "step_00000020") / "model.safetensors").unlink()
    (checkpoint(run / "checkpoints" / "step_00000030") / "config.json").unlink()
    checkpoint(run / "checkpoints" / "step_x")
    checkpoint(run / "checkpoints" / ".step_00000040.tmp")
    (run / "checkpoints" / "step_00000050").write_text("a file")
    (run / "checkpoints" / "step_00000060").symlink_to(checkpoint(tmp_path / "elsewhere"))
    (run / "checkpoints" / "step_00000070").symlink_to("step_00000070")
    assert checkpoints_of(run) == [(10, good)]
    assert resolve_checkpoint(run) == good


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"\xff", b"[" * 5000, b"{"])
def test_the_state_of_a_checkpoint_that_cannot_be_read_is_empty(run, text):
    folder = checkpoint(run / "checkpoints" / "step_00000010")
    (folder / "trainer_state.json").write_bytes(text)
    assert checkpoint_state(folder) == {}


def test_a_run_without_a_checkpoint_is_refused_by_name(run):
    (run / "checkpoints").write_text("a file")
    with pytest.raises(InputError, match="has no complete checkpoint"):
        resolve_checkpoint(run)

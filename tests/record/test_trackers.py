"""What trackers are told of a run: every step once and as metrics.jsonl has it, whatever the run takes back."""

from __future__ import annotations

import json
import math
import struct
import sys
import time
import types

import pytest
from accelerate import PartialState

from common.errors import InputError
from common.section import flat
from configs.load import load_config
from record.recorder import Recorder
from record.rows import read_rows
from record.trackers import Part, Title, Trackers, _next_part, refuse_unready


@pytest.fixture
def opened(recipe, tmp_path):
    """Trackers of the run tmp_path/tiny, as a process that begins after ``step`` has them."""

    PartialState()  # as a run has it: Accelerate's trackers ask whether theirs is the main process

    def trackers(step, *overrides, said=None, writes=True):
        config = load_config(recipe["path"], [*recipe["overrides"], *overrides])
        (tmp_path / "tiny").mkdir(exist_ok=True)
        recorder = Recorder(tmp_path / "tiny", writes=writes)
        title = Title(config.tracking.project, config.tracking.run_name or config.name, flat(config.model_dump()))
        made = Trackers(config.trackers, title, recorder, [].append if said is None else said.append)
        made.start(step)
        recorder.rewind(step)
        return made

    return trackers


def take_steps(trackers, first, last, offset):
    rows = [{"step": step, "loss/nll": step + offset, "odd": math.nan} for step in range(first, last + 1)]
    trackers.recorder.write_rows(rows)
    trackers.log(rows)


def go_back(trackers, step):
    trackers.go_back(step)
    trackers.recorder.rewind(step)


def rows(folder):
    return [(row["step"], row["loss/nll"]) for row in read_rows(folder / "metrics.jsonl")]


# ------------------------------------------------------------------------------------------------------------ TensorBoard


def test_tensorboard_is_told_what_is_taken_back(opened, tmp_path):
    """In one second, so that the order of its files is not the clock's; read as `tensorboard --logdir` reads."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.plugin_event_multiplexer")
    first = opened(0, "trackers=[tensorboard]")
    take_steps(first, 1, 9, offset=0.0)
    for number in range(12):  # more files than one digit counts
        go_back(first, 4)
        take_steps(first, 5, 7, offset=1.0 + number)
    second = opened(6, "trackers=[tensorboard]")  # the first process was killed
    take_steps(second, 7, 8, offset=0.5)
    go_back(second, 0)
    take_steps(second, 1, 3, offset=0.25)
    second.finish()

    multiplexer = reader.EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    assert list(multiplexer.Runs()) == ["tiny"], "one run, its configuration in it"
    assert "_hparams_/session_start_info" in multiplexer.PluginRunToTagToContent("hparams")["tiny"]
    shown = [(t.step, t.tensor_proto.float_val[0]) for t in multiplexer.Tensors("tiny", "loss/nll")]
    assert shown == rows(tmp_path / "tiny") == [(1, 1.25), (2, 2.25), (3, 3.25)]


def test_tensorboard_reads_the_files_of_a_clock_that_was_put_back_in_order(opened, tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for clock, begins in [(2e9, 0), (1e9, 2), (1e9, 3)]:
        monkeypatch.setattr("time.time", lambda clock=clock: clock)
        trackers = opened(begins, "trackers=[tensorboard]")
        take_steps(trackers, begins + 1, begins + 3, offset=begins / 8)
        trackers.finish()
    shown = accumulator.EventAccumulator(str(tmp_path / "tiny")).Reload().Scalars("loss/nll")
    assert [(s.step, s.value) for s in shown] == rows(tmp_path / "tiny")
    assert [s.step for s in shown] == [1, 2, 3, 4, 5, 6]


# ------------------------------------------------------------------------------------------------------- other trackers


class Trackio(types.ModuleType):
    """Stands in for a tracker's library, which keeps all that it is told."""

    def __init__(self):
        super().__init__("trackio")
        self.config, self.runs, self.fails = {}, {}, False

    def init(self, project, name, group, resume):
        if self.fails:
            raise ConnectionError(f"nobody answers\nfor {project}")
        logged = self.runs.setdefault((project, group, name), [])

        def log(row, step):
            if self.fails:
                raise ConnectionError("nobody answers")
            logged.append((step, row["loss/nll"]))

        return types.SimpleNamespace(log=log, finish=lambda: None)


@pytest.fixture
def trackio(monkeypatch):
    library = Trackio()
    monkeypatch.setitem(sys.modules, "trackio", library)
    return library


def test_a_tracker_that_cannot_take_back_gets_another_run(opened, trackio, tmp_path):
    chosen = ["trackers=[trackio]", "tracking.project=norms", "tracking.run_name=small"]
    first = opened(0, *chosen)
    take_steps(first, 1, 9, offset=0.0)
    go_back(first, 4)
    take_steps(first, 5, 6, offset=0.5)
    first.finish()
    second = opened(6, *chosen)  # stopped in order, so nothing comes again
    take_steps(second, 7, 8, offset=0.5)
    third = opened(7, *chosen)  # killed
    take_steps(third, 8, 8, offset=0.25)
    assert trackio.runs == {
        ("norms", "small", "small"): [(step, step) for step in range(1, 10)],
        ("norms", "small", "small-2-back-to-4"): [(5, 5.5), (6, 6.5), (7, 7.5), (8, 8.5)],
        ("norms", "small", "small-3-back-to-7"): [(8, 8.25)],
    }
    third.finish()
    (tmp_path / "tiny" / "trackers.json").write_text("[1]")
    with pytest.raises(InputError, match=r"trackers\.json: cannot be read"):
        opened(8, *chosen)


def test_a_run_goes_on_without_a_tracker_that_fails(opened, trackio, tmp_path):
    said = []
    trackers = opened(0, "trackers=[trackio]", said=said)
    take_steps(trackers, 1, 2, offset=0.0)
    trackio.fails = True
    take_steps(trackers, 3, 4, offset=0.0)
    trackio.fails = False
    take_steps(trackers, 5, 6, offset=0.0)
    trackers.finish()
    assert list(trackio.runs.values()) == [[(1, 1.0), (2, 2.0)]]
    (event,) = read_rows(tmp_path / "tiny" / "events.jsonl")
    assert event == {
        **{"event": "tracker_failed", "written_at": 4, "step": 4, "tracker": "trackio"},
        "reason": "ConnectionError: nobody answers",
    }
    (line,) = said
    assert line.startswith("trackio fails and gets no more rows")
    again = opened(4, "trackers=[trackio]")
    assert [e["event"] for e in read_rows(tmp_path / "tiny" / "events.jsonl")] == ["tracker_failed"]
    trackio.fails = True
    again.go_back(2)
    assert [e["step"] for e in read_rows(tmp_path / "tiny" / "events.jsonl")] == [4, 2]


def test_a_tracker_that_does_not_start_is_one_line_and_leaves_nothing(opened, trackio, tmp_path):
    trackio.fails = True
    with pytest.raises(InputError) as error:
        opened(0, "trackers=[tensorboard, trackio]")
    (line,) = error.value.problems
    assert line == (
        "trackers: trackio does not start: ConnectionError: nobody answers for stability-testbed; "
        "mend that, or leave trackio out"
    )
    assert not list((tmp_path / "tiny").iterdir())


def test_only_the_main_process_has_trackers(opened, trackio):
    other = opened(0, "trackers=[trackio]", writes=False)
    take_steps(other, 1, 2, offset=0.0)
    other.go_back(1)
    other.finish()
    assert not trackio.runs


@pytest.mark.parametrize("overrides", [["tracking.project=x"], ["tracking.run_name=x", "trackers=[tensorboard]"]])
def test_settings_without_effect_are_said(overrides, recipe, capsys):
    """No mistake: a recipe's settings stay where an override switches its trackers off."""
    load_config(recipe["path"], [*recipe["overrides"], *overrides])
    assert capsys.readouterr().err.startswith("note: tracking: has no effect without a tracker other than tensorboard")
    load_config(recipe["path"], [*recipe["overrides"], "trackers=[wandb]", "tracking.project=x"])
    assert capsys.readouterr().err == ""


def test_a_tracker_that_was_left_out_for_some_steps_gets_another_run():
    """Its own run lacks them."""
    closed = Part(1, after=0, id="a", told=200)
    assert _next_part("wandb", closed, 200) == Part(1, after=0, id="a")
    for step in (100, 400):
        part = _next_part("wandb", closed, step)
        assert (part.number, part.after) == (2, step)
        assert part.id != "a"


# ------------------------------------------------------------------------------------------------------------------- W&B


@pytest.fixture
def wandb_mode(monkeypatch, tmp_path):
    """Has W&B, where nobody is logged in, look at its mode anew."""
    wandb = pytest.importorskip("wandb", reason="W&B is not installed")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)

    def begin(mode):
        wandb.teardown()
        monkeypatch.setenv("WANDB_MODE", mode)

    yield begin
    wandb.teardown()


def test_without_a_login_to_wandb_nothing_begins(wandb_mode):
    wandb_mode("online")
    with pytest.raises(InputError, match=r"trackers: wandb: .*No API key.*; mend that, set WANDB_MODE=offline"):
        refuse_unready(["wandb"])
    wandb_mode("offline")
    refuse_unready(["wandb"])


def test_the_last_run_of_wandb_is_metrics_jsonl(opened, wandb_mode, tmp_path):
    wandb_mode("offline")
    first = opened(0, "trackers=[wandb]")
    take_steps(first, 1, 9, offset=0.0)
    go_back(first, 4)
    take_steps(first, 5, 6, offset=0.5)
    first.finish()
    time.sleep(1.1)  # W&B's folder is named by the second: within one, the same process would write to the same file
    second = opened(6, "trackers=[wandb]")
    take_steps(second, 7, 8, offset=0.25)
    second.finish()
    last = json.loads((tmp_path / "tiny" / "trackers.json").read_text())["wandb"]["id"]
    history, settings = [], set()
    for file in sorted((tmp_path / "tiny" / "wandb").glob(f"offline-run-*-{last}/*.wandb")):
        for record in wandb_records(file.read_bytes()):
            if record.HasField("run"):
                settings.add((record.run.project, record.run.display_name, record.run.run_group))
            if record.HasField("history"):
                items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                assert math.isnan(items["odd"])
                history.append((items["_step"], items["loss/nll"]))
    assert history == rows(tmp_path / "tiny")
    assert [step for step, _ in history] == list(range(1, 9))
    assert settings == {("stability-testbed", "tiny-2-back-to-4", "tiny")}


def wandb_records(data):
    """The records of a .wandb file: 32 KiB blocks of chunks, as in LevelDB's log, after a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    place, whole = 7, b""
    while place < len(data):
        left = 32768 - place % 32768
        kind = 0 if left < 7 else data[place + 6]
        if kind == 0:  # the rest of the block is padding
            place += left
            continue
        (length,) = struct.unpack_from("<H", data, place + 4)
        chunk = data[place + 7 : place + 7 + length]
        whole = chunk if kind in (1, 2) else whole + chunk
        place += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record

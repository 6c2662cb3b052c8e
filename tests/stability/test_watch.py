"""What a watch looks for in every run, and how it goes on from a checkpoint, older ones included."""

import json
from dataclasses import replace

import numpy as np
import pytest

from analysis.spikes import __main__ as spikes
from record.recorder import Recorder
from stability.detect.events import Rise, Spike, told_by
from stability.detect.saturation import LIMITS
from stability.watch import Watch
from tests.analysis.written import write_run
from tests.conftest import events_of


def new_watch(folder):
    return Watch(Recorder(folder, writes=True), lambda _: None, "median_mad", ["loss/nll", "grad_norm/total"])


def rows(first, last, **changed):
    usual = {"loss/nll": 5.0, "loss/objective": 5.0, "grad_norm/total": 1.0, "attention/logit_max": 20.0}
    return [{"step": step, **usual, **changed} for step in range(first, last + 1)]


def rules(watch):
    return [(detector.kind, detector.signal) for detector in watch.detectors]


def test_every_run_is_watched_for_spikes_rises_saturation_and_stalls(tmp_path):
    expected = [("median_mad", "loss/nll"), ("median_mad", "grad_norm/total"), ("level", "loss/nll")]
    expected += [("saturated", signal) for signal in LIMITS]
    assert rules(new_watch(tmp_path)) == [*expected, ("stall", "loss/nll")]


def test_a_rule_that_is_chosen_and_always_there_speaks_once(tmp_path):
    watch = Watch(Recorder(tmp_path, writes=True), lambda _: None, "saturated", ["attention/logit_max", "loss/nll"])
    watch.look(rows(1, 60, **{"attention/logit_max": 900.0}), drew=lambda step: step)
    (event,) = events_of(tmp_path)
    assert (event["event"], event["start_step"]) == ("saturated", 1)


def test_it_goes_on_exactly_from_its_own_state(tmp_path):
    watch, other = new_watch(tmp_path), new_watch(tmp_path)
    watch.look(rows(1, 50) + rows(51, 60, **{"attention/logit_max": 900.0}), drew=lambda step: step)
    state = json.loads(json.dumps(watch.state()))
    other.restore(state, 60)
    assert other.state() == state
    assert all(detector.last_step == 60 for detector in other.detectors)


@pytest.mark.parametrize("lacking", [("level",), ("saturated",), ("level", "saturated", "stall")])
def test_rules_that_an_older_checkpoint_lacks_begin_at_its_step(tmp_path, lacking):
    watch, other = new_watch(tmp_path), new_watch(tmp_path)
    watch.look(rows(1, 50), drew=lambda step: step)
    old = [detector for detector in watch.state() if detector["detector"] not in lacking]
    other.restore(old, 50)
    assert rules(other) == rules(watch)
    assert {d.kind for d in other.detectors if d.last_step is None} == set(lacking)
    assert [detector for detector in other.state() if detector["detector"] not in lacking] == old
    other.look(rows(51, 60, **{"attention/logit_max": 900.0}), drew=lambda step: step)
    (event,) = events_of(tmp_path)
    assert (event["event"], event["start_step"], event["opened_step"]) == ("saturated", 51, 52)


def test_a_rule_that_kept_other_values_in_an_older_checkpoint_begins_anew(tmp_path):
    watch, other = new_watch(tmp_path), new_watch(tmp_path)
    watch.look(rows(1, 50), drew=lambda step: step)
    old = [
        {k: v for k, v in one.items() if k != "quiet"} | ({"former": 1} if "quiet" in one else {})
        for one in watch.state()
    ]
    other.restore(old, 50)
    assert [detector.kind for detector in other.detectors if detector.last_step is None] == ["stall"]
    other.look(rows(51, 60), drew=lambda step: step)
    assert events_of(tmp_path) == []


def test_a_history_of_another_form_in_an_older_checkpoint_begins_anew(tmp_path):
    watch, other = new_watch(tmp_path), new_watch(tmp_path)
    watch.look(rows(1, 50), drew=lambda step: step)
    old = watch.state()
    del old[0]["baseline"]["usual"]
    other.restore(old, 50)
    assert [(d.kind, d.signal) for d in other.detectors if d.last_step is None] == [("median_mad", "loss/nll")]
    other.look(rows(51, 60), drew=lambda step: step)


def losses(length, jump, at):
    random = np.random.default_rng(0)
    values = 3 + 0.02 * random.standard_normal(length)
    values[at - 1 :] += jump
    return [{"step": step, "loss/nll": value} for step, value in enumerate(values.tolist(), start=1)]


@pytest.mark.parametrize("flush", [20, 3000])
@pytest.mark.parametrize(("jump", "kinds"), [(1.0, ["spike"]), (0.03, ["rise"])])
def test_a_level_that_stays_is_told_once_online_and_offline(tmp_path, jump, kinds, flush):
    """Far above the noise it is a spike that does not recover; 1.5 noises above it a rise."""
    taken = losses(3000, jump, at=1500)
    watch = new_watch(tmp_path)
    for begin in range(0, 3000, flush):
        watch.look(taken[begin : begin + flush], drew=lambda step: step)
    watch.finish(3000, drew=lambda step: step)
    opened, online = (
        [e for e in events_of(tmp_path) if (e["event"] == "spike_opened") == wanted] for wanted in (True, False)
    )
    assert [event["event"] for event in online] == kinds
    assert [(e["start_step"], e["written_at"]) for e in opened] == ([(1500, 1500)] if flush == 20 and jump == 1 else [])
    assert 1300 < online[0]["start_step"] <= 1500 + 50
    run = write_run(tmp_path / "written", taken)
    spikes.main([str(run), "--out", str(tmp_path)])
    offline = json.loads((tmp_path / "events.json").read_text())
    (event,), (told,) = offline, online
    common = event.keys() & told.keys() - {"precursors"}
    assert {key: event[key] for key in common} == {key: told[key] for key in common}
    assert {"start_step", "opened_step", "height", "sigmas"} <= common


RISE = Rise("level", "loss/nll", 100, 200, 0.1, 9.0)


@pytest.mark.parametrize(
    ("start", "end", "recovered", "told"),
    [
        (150, 250, True, True),  # it was open when the rise was noticed
        (90, 110, True, False),  # it was over: the level is another matter
        (90, 110, False, True),  # its level has become the usual one
        (90, 99, False, False),
        (201, 300, False, False),
    ],
)
def test_a_rise_is_told_by_the_spike_whose_level_it_is(start, end, recovered, told):
    spike = Spike("median_mad", "loss/nll", start, start, start, end, 1.0, 9.0, recovered)
    assert told_by(RISE, [spike]) == told
    assert not told_by(RISE, [replace(spike, signal="other")])
    assert not told_by(spike, [spike])


def spiked(tmp_path, height_of, stressed):
    """What a watch says of 100 steps of a loss of 5 with noise, ``height_of`` added; ``stressed``: kinds by step."""
    said, noise = [], np.random.default_rng(0).standard_normal(101)
    watch = Watch(Recorder(tmp_path, writes=True), said.append, "median_mad", ["loss/nll"],
                  acting=lambda step, batch: stressed[step])  # fmt: skip
    taken = rows(1, 100)
    for row in taken:
        row["loss/nll"] += 0.02 * noise[row["step"]] + height_of.get(row["step"], 0.0)
        row["stress/acting"] = len(stressed.get(row["step"], ()))
    watch.look(taken, drew=lambda step: step)
    return said


CLIMB = {80: 0.11, 81: 0.06, 82: 3.0, 83: 4.0, 84: 2.0}
"""It begins to add up at step 80 and stands out at 82."""


@pytest.mark.parametrize(
    ("stressed", "words", "step"),
    [
        ({}, "", 82),
        ({81: ["scale_lr"], 82: ["scale_lr"]}, ", while scale_lr acted", 81),
        ({82: ["flip_bit"], 83: ["label_noise"]}, ", while flip_bit and label_noise acted", 82),
        ({83: ["flip_bit"]}, ", while flip_bit acted", 82),
        ({77: ["scale_lr"], 90: ["flip_bit"]}, ", shortly after scale_lr acted", 82),
        ({s: ["half_parameters"] for s in range(60, 101)}, ", while half_parameters acted", 82),
        ({60: ["scale_lr"]}, "", 82),
    ],
)
def test_the_line_of_a_spike_names_stresses_and_the_step_that_tells_most(tmp_path, stressed, words, step):
    (said,) = spiked(tmp_path, CLIMB, stressed)
    (event,) = events_of(tmp_path)
    assert (event["start_step"], event["peak_step"]) == (80, 83)
    line, command = said.splitlines()
    assert line.endswith(f"recovered{words}")
    assert f"--step {step} " in command
    assert event["replay"] in command
    assert not {"while", "stress", "acted"} & event.keys()

"""The scoring rule on hand-computed cases, and the command on made-up curves."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.results import markdown_tables
from benchmarks.real_curves import packages
from benchmarks.real_curves.__main__ import main
from benchmarks.real_curves.cases import Above, Count, Curve, Label, TimesMedian, load
from benchmarks.real_curves.contestants import own, sightings
from benchmarks.real_curves.score import Sighting, healthy_steps, score, score_noted, to_cover
from common.errors import InputError
from stability.detect.catalogue import make_detector


def label(sharp=(), late_rise=None, healthy=False, **more):
    return {"every": 1, "source": "made up", "sharp": [*sharp], "late_rise": late_rise, "healthy": healthy, **more}


def curve(values, rule=None, column="loss", **labels):
    values = np.asarray(values, dtype=float)
    steps = np.arange(len(values))
    return Curve("made up", column, "tune", Label.model_validate(label(**labels)), steps, values, rule)


def at(start, opened=None, end=None):
    opened = start if opened is None else opened
    return Sighting(start, opened, opened if end is None else end)


LABELLED = curve(np.ones(20_000), sharp=[1_000, 3_000], late_rise=10_000)


@pytest.mark.parametrize(("start", "found"), [(979, False), (980, True), (1_060, True), (1_061, False)])
def test_a_sharp_spike_is_found_from_20_steps_before_to_60_after(start, found):
    one = score(LABELLED, [at(start)])
    assert one.sharp == [found, False]
    assert len(one.alarms) == (not found)


def test_a_sharp_spike_counts_by_its_start_and_a_second_event_at_it_is_neither():
    one = score(LABELLED, [at(970, opened=1_000), at(1_000), at(1_040)])
    assert one.sharp == [True, False]
    assert one.alarms == [at(970, opened=1_000)]


@pytest.mark.parametrize(
    ("event", "found", "alarm"),
    [
        (at(7_999), False, True),
        (at(8_000), True, False),
        (at(7_000, opened=8_000), True, False),  # opened within
        (at(15_000), True, False),
        (at(9_999, opened=15_001), True, False),  # starts within
        (at(15_001), False, False),  # after the late rise nothing is scored
        (at(7_000, opened=7_999, end=16_000), False, True),
    ],
)
def test_a_late_rise_is_found_by_an_event_that_starts_or_is_opened_near_its_onset(event, found, alarm):
    one = score(LABELLED, [event])
    assert one.rises == [found]
    assert one.alarms == ([event] if alarm else [])


def test_the_delay_is_that_of_the_event_that_was_opened_first():
    assert score(LABELLED, [at(9_000, opened=10_700), at(9_500, opened=10_300)]).delay == 300
    assert score(LABELLED, [at(9_000, opened=9_900)]).delay == -100
    assert score(LABELLED, [at(1_000)]).delay is None


def test_a_spike_labelled_after_the_late_rise_is_not_scored():
    one = score(curve(np.ones(20_000), sharp=[1_000, 12_000], late_rise=10_000), [at(12_000)])
    assert one.sharp == [False]
    assert one.rises == [True]


def test_every_event_on_a_healthy_log_is_a_false_alarm():
    one = score(curve(np.ones(500), healthy=True), [at(3), at(499)])
    assert (one.sharp, one.rises, one.delay, len(one.alarms)) == ([], [], None, 2)


def test_healthy_steps_are_those_at_which_an_event_is_a_false_alarm():
    assert healthy_steps(curve(np.ones(500), healthy=True)) == 500
    assert healthy_steps(LABELLED) == 8_000 - 2 * 81
    assert healthy_steps(curve(np.ones(500), sharp=[10, 30])) == 500 - 91  # 0 to 90, counted once
    assert healthy_steps(curve(np.ones(5_000), late_rise=1_500)) == 0
    brute = sum(bool(score(LABELLED, [at(step)]).alarms) for step in range(10_000))
    assert brute == healthy_steps(LABELLED)


def test_values_above_a_limit_are_to_be_covered():
    values = np.ones(100)
    values[[10, 40, 41, 80]] = 5
    one = score_noted(curve(values, Above(4.0), "grad_norm"), [at(9, end=12), at(41), at(50, end=60)])
    assert (one.wanted, one.found, one.others) == (4, 2, 1)


def test_values_of_twice_the_running_median_are_to_be_covered_where_its_window_is_whole():
    values = np.full(60, 1.0)
    values[[2, 20, 30]] = 2.0
    values[40:50] = 2.0  # more than half of the window of each: the usual
    values[58] = 9.0
    noted = curve(values, TimesMedian(2.0, 11), "grad_norm")
    assert to_cover(noted) == ([20, 30], (5, 54))
    one = score_noted(noted, [at(2), at(20), at(25), at(58)])
    assert (one.found, one.others) == (1, 1)


def test_events_are_counted_where_only_their_number_is_known():
    one = score_noted(curve(np.ones(50), Count(14)), [at(5), at(20)])
    assert (one.wanted, one.found, one.others) == (14, 2, None)


def test_an_event_is_opened_when_the_rule_is_sure_and_starts_where_it_began():
    values = np.full(200, 3.0)
    values[150:160] = 7.0
    assert sightings(make_detector("llm_foundry", "loss"), curve(values)) == [Sighting(150, 154, 159)]
    values = np.where(np.arange(200) < 190, 3.0, 7.0)  # open at the end
    assert sightings(make_detector("llm_foundry", "loss"), curve(values)) == [Sighting(190, 194, 199)]


def test_a_rise_is_opened_at_the_step_that_it_names():
    random = np.random.default_rng(1)
    values = 3 + 0.02 * random.standard_normal(6_000)
    values[4_000:] += 0.1
    (rise,) = sightings(make_detector("level", "loss"), curve(values))
    assert 3_900 <= rise.start <= 4_050 < rise.opened == rise.end < 4_500


def write(folder: Path, labels: dict, **columns_of: dict) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "labels.json").write_text(json.dumps(labels))
    for name, columns in columns_of.items():
        pd.DataFrame(columns).to_parquet(folder / f"{name.replace('__', '-')}.parquet")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A healthy curve, one with a spike, one without a column loss, and one of those that are scored by their note."""
    random = np.random.default_rng(0)
    healthy, spiked = (3 + 0.02 * random.standard_normal(1_000) for _ in range(2))
    spiked[600:603] += 5
    norms = np.exp(0.05 * random.standard_normal(400))
    norms[[250, 300]] = 30
    labels = {"b-healthy": label(healthy=True), "c": label(sharp=[600]), "d": label(healthy=True)}
    labels["hf_star"] = label(note="two values")
    labels["nanogpt_153325"] = label(note="fourteen, none of them here")
    steps = np.arange(1_000)
    return write(
        tmp_path / "curves",
        labels,
        b__healthy={"step": steps, "loss": np.where(steps == 0, np.nan, healthy)},
        c={"step": steps, "loss": spiked},
        d={"step": steps, "val_loss": healthy},
        nanogpt_153325={"step": steps[:500], "loss": spiked[500:]},
        hf_star={"step": 20 * np.arange(400), "loss": healthy[:400], "grad_norm": norms},
    )


def test_the_folder_is_read_halves_alternate_and_what_was_not_written_is_left_out(folder, capsys):
    curves = load(folder)
    assert [(one.name, one.column, one.half, len(one.values)) for one in curves] == [
        ("b-healthy", "loss", "tune", 999),
        ("c", "loss", "report", 1_000),
        ("hf_star", "grad_norm", "report", 400),
        ("nanogpt_153325", "loss", "tune", 500),
    ]
    assert "d has no column loss: left out" in capsys.readouterr().err


def test_a_curve_is_cut_where_nothing_is_scored_any_more(tmp_path):
    steps = np.arange(12_000)
    write(tmp_path, {"a": label(late_rise=3_000)}, a={"step": steps, "loss": np.ones(12_000)})
    (one,) = load(tmp_path)
    assert one.steps[-1] == 8_000


def test_the_command_measures_every_contestant(folder, tmp_path, capsys):
    main([str(folder), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    text = (tmp_path / "out" / "real_curves.md").read_text()
    assert text.strip() == printed.strip()
    found = markdown_tables(text)
    rows = {row["all curves"]: row for row in found["all curves"]}
    assert rows["median_mad"]["sharp spikes"] == "1 of 1"
    assert rows["median_mad"]["late rises"] == ""
    assert rows["level"]["sharp spikes"] == "0 of 1"
    assert next(iter(rows)) == "median_mad and level"
    assert {contestant.name for contestant in own()} < set(rows)
    assert "2 curves, 1,918 healthy steps." in text
    assert found["tune half"][0]["sharp spikes"] == ""
    notes = {row["by the note"]: row for row in found["by the note"]}
    assert notes["median_mad"]["hf_star grad_norm (report)"] == "2 of 2"
    assert notes["median_mad"]["nanogpt_153325 loss, events, 14 by eye (tune)"] == "1"
    assert notes["level"]["hf_star grad_norm (report)"] == "not applicable: for losses only"
    events = pd.read_csv(tmp_path / "out" / "events.csv")
    (spike,) = events[(events["contestant"] == "median_mad") & (events["curve"] == "c")].to_dict("records")
    assert (spike["start"], spike["end"], spike["false_alarm"]) == (600, 602, False)


def test_a_package_is_measured_or_said_to_be_missing(folder, capsys):
    main([str(folder)])
    printed = capsys.readouterr().out
    _, absent = packages.installed()
    for name in packages.PACKAGES:
        assert (f"{name}: not installed" in printed) == (name in absent)
        assert name in printed


def test_consecutive_flags_are_one_event():
    flags = [False, True, True, False, True, False]
    assert packages.runs(curve(np.ones(6)), flags) == [Sighting(1, 1, 2), Sighting(4, 4, 4)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "labels.json").unlink(), "labels.json cannot be read"),
        (lambda folder: (folder / "labels.json").write_text("{"), "labels.json is no JSON"),
        (lambda folder: write(folder, {"c": label(sharp=[1], healthy=True)}), "c: Value error, a healthy curve has"),
        (lambda folder: write(folder, {"c": label(late="x")}), r"labels.json: c.late: Extra inputs"),
        (lambda folder: write(folder, {"e": label(sharp=[1])}), "e.parquet cannot be read as parquet"),
        (lambda folder: (folder / "c.parquet").write_text("no"), "c.parquet cannot be read as parquet"),
        (lambda folder: write(folder, {"c": label()}), "has no curve that can be scored"),
        (lambda folder: write(folder, {"c": label(sharp=[1])}, c={"loss": [1.0]}), "has no column step"),
        (
            lambda folder: write(folder, {"c": label(sharp=[1])}, c={"step": [1, 1], "loss": [1.0, 2.0]}),
            "step goes back",
        ),
        (lambda folder: write(folder, {"hf_star": label()}, hf_star={"step": [1]}), "has no column grad_norm"),
    ],
)
def test_a_folder_that_cannot_be_used_is_told_in_a_line(folder, change, message):
    change(folder)
    with pytest.raises(InputError, match=message):
        load(folder)

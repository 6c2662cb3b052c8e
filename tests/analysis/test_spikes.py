from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.show import style
from analysis.spikes import __main__ as spikes
from analysis.spikes.figure import MOST_PANELS, draw_spikes
from common.command import exit_status
from common.errors import InputError
from record.recorder import Recorder
from record.table import read_table
from stability.detect.catalogue import DETECTORS
from stability.detect.events import Event, Rise, Spike
from stability.watch import Watch
from tests.conftest import python
from tests.stability.detect.detected import detect

from .written import training_rows, write_run


@pytest.fixture
def eventful(tmp_path: Path) -> Path:
    """A run with a spike of the loss at steps 201 to 205, of which the gradient norm tells two steps before, and a NaN."""
    rows = training_rows(400)
    noise = np.random.default_rng(0).standard_normal(400)
    for index, row in enumerate(rows):
        row["grad_norm/total"] = 0.5 * math.exp(0.1 * noise[index]) * (5 if 198 <= index < 205 else 1)
        row["loss/nll"] += 1.0 if 200 <= index < 205 else 0.0
    rows[300]["loss/nll"] = "NaN"
    return write_run(tmp_path / "eventful", rows)


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A file of another project: text among its columns, NaN as Python writes it, a row twice, a torn last line."""
    values = 3 + 0.05 * np.random.default_rng(0).standard_normal(300)
    values[150:160] += 1
    rows: list[dict[str, Any]] = [
        {"step": i, "train_loss": v, "phase": "train", "ok": True} for i, v in enumerate(values)
    ]
    rows[250]["train_loss"] = math.nan
    rows.append({"step": 299, "train_loss": 9.0})
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 300, "train_l')
    return path


def events(folder: Path) -> list[dict[str, Any]]:
    return json.loads(
        (folder / "events.json").read_text(), parse_constant=lambda name: pytest.fail(f"not strict: {name}")
    )


def test_a_run_directory_gives_events_table_and_figure(eventful: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    done = python("-m", "analysis.spikes", eventful, "--out", out)
    assert done.returncode == 0, done.stderr
    by_signal = {event["signal"]: event for event in events(out)}
    loss, gradient = by_signal["loss/nll"], by_signal["grad_norm/total"]
    assert (loss["start_step"], loss["end_step"], loss["recovered"]) == (201, 205, True)
    assert loss["height"] == pytest.approx(1.0, abs=0.3)
    assert (gradient["start_step"], gradient["end_step"]) == (199, 205)
    (before,) = [p for p in loss["precursors"] if p["signal"] == "grad_norm/total"]
    assert (before["first_step"], before["lead_steps"]) == (199, 2)
    assert {"run", "kind", "detector", "peak_step", "sigmas"} <= set(loss)
    assert "201 to 205" in done.stdout
    assert "1 values are not finite" in done.stdout
    assert (out / "spikes.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in out.iterdir()) == ["events.json", "spikes.png"]


def test_a_stress_near_an_event_is_told(eventful: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in (eventful / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row["stress/acting"] = int(row["step"] in (196, 197, 390))
    out = tmp_path / "out"
    spikes.main([str(write_run(tmp_path / "stressed", rows)), "--out", str(out)])
    assert (
        "stressed: stress acted at steps 196 to 197, 390, in or shortly before 2 of these events"
        in capsys.readouterr().out
    )
    assert [event.get("stress") for event in events(out) if event["start_step"] in (199, 201)] == [[[196, 197]]] * 2
    spikes.main([str(eventful), "--out", str(out)])
    assert "stress acted" not in capsys.readouterr().out
    assert not any("stress" in event for event in events(out))


def test_a_foreign_file_needs_only_step_and_the_signal(foreign: Path, tmp_path: Path) -> None:
    spikes.main([str(foreign), "--signal", "train_loss", "--out", str(tmp_path / "out")])
    first, last = events(tmp_path / "out")
    assert (first["run"], first["start_step"], first["end_step"]) == ("log", 150, 159)
    assert (last["start_step"], last["recovered"]) == (299, False)  # the later of two rows of a step counts


@pytest.mark.parametrize("evaluated", [50, 1], ids=["sometimes", "at every step"])
def test_a_second_row_of_a_step_takes_nothing_from_the_first(tmp_path: Path, evaluated: int) -> None:
    values = 3 + 0.02 * np.random.default_rng(0).standard_normal(300)
    values[150] += 3
    rows = [
        row
        for step, loss in enumerate(values)
        for row in ({"step": step, "loss": loss}, {"step": step, "eval_loss": loss + 0.1})
        if "loss" in row or step % evaluated == 0
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spikes.main([str(path), "--signal", "loss", "--out", str(tmp_path / "out")])
    (event,) = events(tmp_path / "out")
    assert (event["start_step"], event["end_step"]) == (150, 150)
    assert event["height"] == pytest.approx(3, abs=0.1)


def test_a_file_of_nothing_but_steps_is_told(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": "two"}\n')
    with pytest.raises(InputError, match="log has no numbers besides its steps"):
        spikes.main([str(tmp_path / "log.jsonl"), "--out", str(tmp_path / "out")])


def test_offline_is_what_the_detectors_say(eventful: Path, tmp_path: Path) -> None:
    spikes.main([str(eventful), "--detector", "all", "--signal", "loss/nll", "--out", str(tmp_path)])
    table = read_table(eventful / "metrics.jsonl")
    found = [event for event in events(tmp_path) if event["detector"] not in ("stall", "non_finite")]
    assert "kurtosis" not in {event["detector"] for event in found}  # it is meant for other signals
    expected = [
        event.event()
        for name in DETECTORS
        if name not in ("stall", "non_finite", "kurtosis")
        for event in detect("loss/nll", table.steps.tolist(), table.columns["loss/nll"], name)
    ]
    assert expected
    assert [{key: event[key] for key in one} for event, one in zip(found, expected, strict=True)] == expected
    (nan,) = [event for event in events(tmp_path) if event["kind"] == "non_finite"]
    assert (nan["start_step"], nan["end_step"], nan["height"]) == (301, 301, None)


def test_a_column_that_no_table_knows_is_judged_as_it_is_said(tmp_path: Path) -> None:
    """Values with multiplicative noise, whose logarithm has fewer outliers."""
    values = np.exp(0.4 * np.random.default_rng(0).standard_normal(400))
    values[300:303] *= 8
    log = tmp_path / "log.csv"
    log.write_text("step,g\n" + "".join(f"{step},{value}\n" for step, value in enumerate(values, start=1)))
    found = {}
    for kind in ("scale", "norm", "loss"):
        spikes.main([str(log), "--signal", "g", "--kinds", f"{kind}=g", "--out", str(tmp_path / kind)])
        found[kind] = {event["detector"]: event["sigmas"] for event in events(tmp_path / kind)}
    spikes.main([str(log), "--signal", "g", "--out", str(tmp_path / "undeclared")])
    assert {event["detector"]: event["sigmas"] for event in events(tmp_path / "undeclared")} == found["scale"]
    assert found["scale"] != found["norm"]
    for kind, sigmas in found.items():
        expected = detect("g", range(1, 401), values, "median_mad", kind)
        assert [event.sigmas for event in expected] == [s for name, s in sigmas.items() if name == "median_mad"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("norm", "give KIND=COLUMN"),
        ("size=g", "one of loss, norm, scale, rate"),
        ("norm=h", "has no column h; it has g"),
    ],
)
def test_a_kind_that_is_none_is_told(given: str, told: str, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("step,g\n" + "".join(f"{step},{step % 7}\n" for step in range(50)))
    with pytest.raises(InputError, match=told):
        spikes.main([str(log), "--signal", "g", "--kinds", given, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_kurtosis_is_judged_where_it_was_measured(tmp_path: Path) -> None:
    rows = training_rows(200)
    for step, row in enumerate(rows, start=1):
        if step % 2 == 0:
            row["hidden_kurtosis/layer_00"] = 1.0 + 0.1 * (step % 3) + (5.0 if step >= 150 else 0.0)
    run = write_run(tmp_path / "run", rows)
    spikes.main(
        [str(run), "--detector", "kurtosis", "--signal", "loss/nll", "hidden_kurtosis/layer_00", "--out", str(tmp_path)]
    )
    (event,) = events(tmp_path)
    assert (event["signal"], event["start_step"], event["end_step"]) == ("hidden_kurtosis/layer_00", 150, 200)


def test_norms_are_judged_from_the_end_of_the_warm_up_on_in_the_run_and_after_it(tmp_path: Path) -> None:
    """A gradient norm that is even and then noisy, as in the demo; beside it a spike of the loss, and later one of the norm."""
    random = np.random.default_rng(0)
    rows = training_rows(200)
    for step, row in enumerate(rows, start=1):
        noise = 0.03 if step < 35 else 0.3
        row["grad_norm/total"] = math.exp(noise * random.standard_normal()) * (5 if step in (35, 40, 150, 151) else 1)
        row["loss/nll"] += 1.0 if step in (45, 46) else 0.0
    run = write_run(tmp_path / "run", rows, config={"optimizer": {"warmup_steps": 50}})
    watch = Watch(
        Recorder(run, writes=True), lambda _: None, "median_mad", ["loss/nll", "grad_norm/total"], warmup_steps=50
    )
    for start in range(0, 200, 20):
        watch.look(rows[start : start + 20], drew=lambda step: step)
    watch.finish(200, drew=lambda step: step)
    online = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    spikes.main([str(run), "--out", str(tmp_path / "out")])
    where = [(event["signal"], event["start_step"], event["end_step"]) for event in online]
    assert where == [("loss/nll", 45, 46), ("grad_norm/total", 150, 151)]
    numbers = ("signal", "start_step", "peak_step", "end_step", "height", "sigmas", "recovered")
    told = [[event[key] for key in numbers] for event in events(tmp_path / "out")]
    assert told == [[event[key] for key in numbers] for event in online]
    spikes.main([str(run / "metrics.jsonl"), "--out", str(tmp_path / "bare")])  # of which no warm-up is known
    assert ("grad_norm/total", 35) in [(event["signal"], event["start_step"]) for event in events(tmp_path / "bare")]


def test_saturated_attention_and_the_stall_it_causes_are_in_table_list_and_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A loss that stands still; attention is measured every 20 steps, and one of two layers is saturated from step 40 on."""
    rows = training_rows(200)
    for row in rows:
        row["loss/nll"] = 6.6 + 0.1 * (row["loss/nll"] - 3) / 6
    for row in rows[19::20]:
        logits, entropy = (900.0, 0.05) if row["step"] >= 40 else (90.0, 2.0)
        row |= {
            "attention/logit_max": logits,
            "attention/layer_00/logit_max": logits,
            "attention/layer_01/logit_max": 9.0,
        }
        row |= {
            "attention/entropy": (entropy + 3) / 2,
            "attention/layer_00/entropy": entropy,
            "attention/layer_01/entropy": 3.0,
        }
    run = write_run(tmp_path / "run", rows)
    spikes.main([str(run), "--out", str(tmp_path / "out")])
    found = {event["signal"]: event for event in events(tmp_path / "out")}
    assert found.keys() == {"loss/nll", "attention/logit_max", "attention/layer_00/entropy"}
    assert (found["loss/nll"]["kind"], found["loss/nll"]["logits"]) == ("stall", "attention/logit_max")
    logits = found["attention/logit_max"]
    assert (logits["kind"], logits["start_step"], logits["opened_step"]) == ("saturated", 40, 60)
    assert (logits["height"], logits["layers"]) == (900.0, ["layer_00"])
    assert "from 40, seen at 60" in capsys.readouterr().out
    spikes.main([str(run), "--signal", "loss/nll", "--out", str(tmp_path / "loss")])
    assert [event["signal"] for event in events(tmp_path / "loss")] == ["loss/nll"]


def test_a_norm_that_is_not_finite_is_told_in_the_warm_up_too(tmp_path: Path) -> None:
    rows = training_rows(60)
    rows[9]["grad_norm/total"] = "Infinity"
    run = write_run(tmp_path / "run", rows, config={"optimizer": {"warmup_steps": 50}})
    spikes.main([str(run), "--detector", "non_finite", "--out", str(tmp_path / "out")])
    assert [(event["signal"], event["start_step"]) for event in events(tmp_path / "out")] == [("grad_norm/total", 10)]


def test_a_warm_up_that_is_no_number_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", training_rows(20), config={"optimizer": {"warmup_steps": "long"}})
    with pytest.raises(InputError, match=r"config\.yaml: optimizer\.warmup_steps: 'long' is no number of steps"):
        spikes.main([str(run), "--out", str(tmp_path / "out")])


def test_the_spike_score_is_printed(eventful: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spikes.main([str(eventful), "--detector", "olmo2", "--signal", "loss/nll", "--out", str(tmp_path)])
    assert "OLMo 2 spike score of eventful, loss/nll: " in capsys.readouterr().out


def test_updates_that_an_intervention_skipped_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = training_rows(40)
    for row in rows:
        row["intervention/skip_above/skipped"] = float(row["step"] % 6 == 0)
    spikes.main([str(write_run(tmp_path / "run", rows)), "--out", str(tmp_path / "out")])
    assert "run: updates skipped by skip_above: 6, at step 6, 12, 18, 24, 30 and 1 more\n" in capsys.readouterr().out


def test_a_quiet_run_has_an_empty_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "quiet", training_rows(200))
    spikes.main([str(run), "--signal", "loss/nll", "--out", str(tmp_path / "out")])
    assert events(tmp_path / "out") == []
    assert "no events" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["RUN", "--detector", "olmo3"], "--detector olmo3"),
        (["RUN", "--signal", "loss/nll", "loss/nil"], "no loss/nil"),
        (
            ["RUN", "/nowhere"],
            "/nowhere is neither a directory nor a file; give a run directory or a log",
        ),
        (
            ["RUN", "BAD"],
            "bad.jsonl: JSONL, whose column step holds 1.5, which is no number of a step; name another with --columns",
        ),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(
    eventful: Path, tmp_path: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"step": 1.5, "loss/nll": 2}\n')
    names = {"RUN": str(eventful), "BAD": str(bad)}
    command = [*(names.get(a, a) for a in arguments), "--out", str(tmp_path / "out")]
    assert exit_status(lambda: spikes.main(command)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert told in said
    assert not (tmp_path / "out").exists()


def test_a_file_without_a_known_loss_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "reward": 2, "kl": 3}\n')
    with pytest.raises(
        InputError,
        match="no column known to be a loss or a gradient norm; name one with --columns loss=COLUMN, of kl, reward",
    ):
        spikes.main([str(tmp_path / "log.jsonl"), "--out", str(tmp_path / "out")])


def test_torch_is_not_needed() -> None:
    code = "import sys, analysis.spikes; sys.exit('torch' in sys.modules)"
    assert python("-c", code).returncode == 0


def test_of_more_curves_than_a_picture_holds_the_most_eventful_are_drawn() -> None:
    steps, values = np.arange(5.0), np.ones(5)
    panels = {(f"run {i}", "loss"): (steps, values) for i in range(100)}
    found: list[tuple[str, Event]] = [("run 77", Spike("median_mad", "loss", 2, 2, 2, 2, 1.0, 9.0, recovered=True))]
    with style.look():
        figure = draw_spikes(panels, found, ["median_mad"])
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [*(f"run {i}: loss" for i in range(MOST_PANELS - 1)), "run 77: loss"]
    assert figure.legends[0].get_title().get_text() == "30 of 100 curves: those with the most events"
    with style.look():
        figure = draw_spikes(panels, [], ["median_mad"])
    assert figure.legends[0].get_title().get_text() == "30 of 100 curves: those with the most events"


def test_the_fall_at_the_start_does_not_flatten_a_late_rise() -> None:
    """From 9 to 2 in 100 steps, then level, and 0.05 higher from step 6,000 on. A spike in the fall is not cut off."""
    steps = np.arange(1.0, 10_001.0)
    values = 2 + 7 * np.exp(-steps / 30) + 0.05 * (steps >= 6000)
    rise = Rise("level", "loss", 6000, 6100, 0.05, 9.0)
    (panel,) = draw_spikes({("run", "loss"): (steps, values)}, [("run", rise)], ["level"]).axes
    low, high = panel.get_ylim()
    assert low == pytest.approx(2, abs=0.05)
    assert high == pytest.approx(2.05, abs=0.05)
    early = Spike("median_mad", "loss", 10, 10, 11, 12, 1.0, 9.0)
    (panel,) = draw_spikes({("run", "loss"): (steps, values)}, [("run", early)], ["median_mad"]).axes
    assert panel.get_ylim()[1] > values[10]
    (panel,) = draw_spikes(
        {("run", "loss"): (steps, values)}, [("run", early), ("run", rise)], ["median_mad", "level"]
    ).axes
    assert panel.get_ylim() == (low, high)
    values[4000:4003] += 6
    (panel,) = draw_spikes({("run", "loss"): (steps, values)}, [("run", rise)], ["level"]).axes
    assert panel.get_ylim() == pytest.approx((low, high), abs=0.01)
    assert "the highest peaks are above" in "".join(text.get_text() for text in panel.texts)


def test_no_two_detectors_have_the_same_colour() -> None:
    found: list[tuple[str, Event]] = [
        ("run", Spike(name, "loss", 2, 2, 2, 2, 1.0, 9.0, recovered=True)) for name in DETECTORS
    ]
    with style.look():
        figure = draw_spikes({("run", "loss"): (np.arange(5.0), np.ones(5))}, found, list(DETECTORS))
    named = [line for line in figure.legends[0].get_lines() if line.get_label() in DETECTORS]
    assert len({line.get_color() for line in named}) == len(DETECTORS)


def test_a_spike_soon_after_a_branch_point_is_judged_by_the_rows_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the run that it comes from, whose own spike and stress are not told again."""
    rows = training_rows(220)
    for row in rows:
        row["stress/acting"] = int(row["step"] in (100, 205))
        row["loss/nll"] += 2.0 if row["step"] in (100, 205) else 0.0
    run = write_run(tmp_path / "branch", rows[200:])
    spikes.main([str(run), "--out", str(tmp_path / "alone")])
    assert events(tmp_path / "alone") == [], "of 20 rows none can be judged"
    (run / "branch_point").mkdir()
    (run / "branch_point" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:200]))
    capsys.readouterr()
    spikes.main([str(run), "--out", str(tmp_path / "out")])
    (event,) = [event for event in events(tmp_path / "out") if event["signal"] == "loss/nll"]
    assert (event["start_step"], event["end_step"], event["stress"]) == (205, 205, [[205, 205]])
    assert "stress acted at step 205, in or shortly before 1 of these events" in capsys.readouterr().out

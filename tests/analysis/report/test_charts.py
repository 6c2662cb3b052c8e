from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.report.charts import SHOWN, sections
from analysis.report.happened import counts, summed_up, what_happened
from analysis.report.material import Material, read_material
from analysis.report.page import _json, _section
from analysis.report.picture import _draw
from analysis.show import style
from record.finished import Run
from tests.analysis.stability.made import write_suite
from tests.analysis.written import spike

STEPS, RUNS = 4000, 20


def test_long_runs_are_thinned_to_a_size_that_can_be_sent_and_keep_their_extremes() -> None:
    draw = np.random.default_rng(0)
    keys = ("loss/nll", "grad_norm/total")  # a page has up to eight such panels
    runs = {}
    for number in range(RUNS):
        table = pd.DataFrame({key: 3 + draw.random(STEPS) for key in keys}, pd.RangeIndex(1, STEPS + 1, name="step"))
        table.loc[3000 + number, "loss/nll"] = 50.0 + number
        runs[f"run{number}"] = Run(Path("nowhere"), f"run{number}", {"name": number, "lr": number}, table, {}, [], {})
    (section,) = sections(Material(tuple(runs), runs))
    for line in section.charts[0].lines:
        if line.kind == "run":
            assert (line.x[line.y.argmax()], line.y.max()) == (3000 + int(line.name[3:]), 50.0 + int(line.name[3:]))
    assert sum(line.kind == "run" for line in section.charts[0].lines) == RUNS
    assert len(_json([_section(section)])) < 9e6 * len(keys) / 8


def made(losses: list[float], events: list[dict[str, Any]]) -> Run:
    """A run with these losses from step 1 on."""
    table = pd.DataFrame({"loss/nll": losses}, pd.RangeIndex(1, len(losses) + 1, name="step"))
    return Run(Path("nowhere"), "made", {"name": "made"}, table, {}, events, {})


def test_what_lies_beyond_the_axis_is_marked_at_its_edge_with_its_value() -> None:
    """A spike that was found, a peak that is none, and another one close to it; not the beginning."""
    draw = np.random.default_rng(0)
    losses = 3 + 0.1 * draw.random(1000)
    losses[:20], losses[499], losses[799], losses[829] = 9.0, 70.0, 40.0, 30.0
    run = made(losses.tolist(), [spike("loss/nll", 500), spike("loss/nll", 300)])
    (section,) = sections(Material(("made",), {"made": run}))
    (chart,) = section.charts
    assert chart.limits is not None
    assert chart.limits[1] < 4
    found = {mark.x: (mark.beyond, mark.label) for mark in chart.marks}
    assert found == {500: (True, "70.00"), 300: (False, ""), 800: (True, "40.00"), 830: (True, "")}
    assert (
        next(mark.text for mark in chart.marks if mark.x == 500)
        == "made: spike, step 500, 9.00 sigma: 70.00, above the axis"
    )
    with style.look():
        axes = Figure().add_subplot()
        _draw(axes, chart, section)
    assert axes.get_ylim() == chart.limits
    edge = [line for line in axes.lines if line.get_marker() == "^"]
    assert sorted((float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in edge) == [
        (500, 0.985), (800, 0.985), (830, 0.985),
    ]  # fmt: skip
    assert [text.get_text() for text in axes.texts] == ["70.00", "40.00"]


def test_many_lasting_events_of_a_kind_are_told_in_one_sentence() -> None:
    rises = [
        {
            "event": "rise",
            "signal": "loss/nll",
            "start_step": 10 * at,
            "end_step": 10 * at + 5,
            "opened_step": 10 * at + 5,
        }
        | {"height": 1.0 + (at == 3), "sigmas": 5.0}
        for at in range(1, 6)
    ]
    run = made([3.0] * 100, [*rises, {**rises[0], "signal": "grad_norm/total"}, spike("loss/nll", 70)])
    found = what_happened(Material(("made",), {"made": run}))
    told = [(one.where, one.what) for one in summed_up(found) if one.kind == "rise"]
    assert told == [
        ("steps 10 to 55",
         "5 rises of the level, the largest from step 30, noticed at 35: the loss rose by 2.00 and stayed up"),
        ("from step 10, noticed at 15", "the gradient norm rose by 1.00 and stayed up"),
    ]  # fmt: skip
    assert counts(found) == "spikes: 1, rises of the level: 6"
    few = [one for one in found if one.kind != "rise" or one.span[0] <= 30]
    assert summed_up(few) == few


def test_of_many_arms_the_baseline_and_the_extremes_are_shown_at_first(tmp_path: Path) -> None:
    levels = {f"arm{number:02}": {0.01: 4.0 + 0.05 * number} for number in range(18)}
    material = read_material([str(write_suite(tmp_path / "many", levels, [0]))])
    (section,) = sections(material)
    shown = [group.name for group in section.groups if not group.hidden]
    assert len(shown) == SHOWN
    assert {"arm00", "arm01", "arm16", "arm17"} <= set(shown)
    colours = {group.look.colour for group in section.groups if not group.hidden}
    assert len(colours) == SHOWN

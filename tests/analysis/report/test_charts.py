from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from analysis.report.charts import SHOWN, sections
from analysis.report.material import Material, read_material
from analysis.report.page import _json, _section
from record.finished import Run
from tests.analysis.stability.made import write_suite

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


def test_of_many_arms_the_baseline_and_the_extremes_are_shown_at_first(tmp_path: Path) -> None:
    levels = {f"arm{number:02}": {0.01: 4.0 + 0.05 * number} for number in range(18)}
    material = read_material([str(write_suite(tmp_path / "many", levels, [0]))])
    (section,) = sections(material)
    shown = [group.name for group in section.groups if not group.hidden]
    assert len(shown) == SHOWN
    assert {"arm00", "arm01", "arm16", "arm17"} <= set(shown)
    colours = {group.look.colour for group in section.groups if not group.hidden}
    assert len(colours) == SHOWN

"""The table of the cost of measuring the edge; that its contestants are valid and measure what they say."""

import numpy as np
import pytest

from analysis.results import markdown_tables
from benchmarks.edge_cost import EVERY, MODES, per_cent, tables
from benchmarks.paired import BLOCK, Series, start_run
from benchmarks.turns import Cost
from configs.schema import TelemetryConfig
from tests.conftest import rows_of
from training.flush import flush
from training.step import training_step


def series(*seconds):
    return Series(Cost(0.0, 0.0), [Cost(BLOCK * s, BLOCK * s / 2) for s in seconds])


def test_the_cost_is_what_is_added_to_the_step_without_and_a_hundredth_of_it():
    times = np.linspace(1, 2, 6)
    found = markdown_tables(tables({name: series(*times * (1 + 0.5 * i)) for i, name in enumerate(MODES)}))
    first, *others = found["measured at every step"]
    assert (first["ms, wall"], first["ms, CPU"], first["added, wall"]) == ("1500.0", "750.0", "")
    assert [row["added, CPU"].split()[0] for row in others] == ["+50.0%", "+100.0%", "+150.0%"]
    (often,) = found["telemetry.edge_every"]
    assert often["telemetry.edge_every"] == str(TelemetryConfig().edge_every) == str(EVERY)
    assert often["added, wall"] == "+0.50% [+0.50%, +0.50%]"
    assert per_cent(0.9, 0.85, 1.02).replace("\N{MINUS SIGN}", "-") == "-10.0% [-15.0%, +2.0%]"


@pytest.mark.parametrize("name", MODES)
def test_a_contestant_measures_what_it_is_called_by(workspace, tmp_path, name):
    run = start_run(workspace / "tiny.yaml", MODES[name], str(tmp_path), "mode")
    for step in (1, 2):
        training_step(run, step)
    flush(run, evaluation_due=False)
    for row in rows_of(tmp_path / "mode"):
        assert ("edge/kappa" in row) == (name == "edge")
        assert ("intervention/safe_step/kappa" in row) == (name == "safe_step, kappa")
        assert ("intervention/safe_step/spread" in row) == (name == "safe_step, logits")

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from analysis.stability.curve import moving_median
from analysis.stability.measure import BY_KEY, MEASURES, measure, update_size
from analysis.stability.spikes import SILENT, find_spikes, told
from analysis.stability.stresses import damage
from record.finished import Run, load_run
from stability.detect.catalogue import detect_series, make_detector
from tests.analysis.written import Row, spike, write_run

from .made import STEPS, config, curve


def run(folder: Path, rows: list[Row], **more: object) -> Run:
    return load_run(write_run(folder, rows, **{"config": config(0), **more}))  # type: ignore[arg-type]


def test_each_measure_has_a_key_of_its_own_and_every_value_an_entry(tmp_path: Path) -> None:
    assert len(BY_KEY) == len(MEASURES)
    assert set(measure(run(tmp_path / "a", curve(0))).values) == set(BY_KEY)


def test_a_calm_run_lost_nothing(tmp_path: Path) -> None:
    values = measure(run(tmp_path / "a", curve(0))).values
    assert (values["ended"], values["survived"], values["diverged"], values["capped"]) == ("finished", 1, 0, 0)
    assert (values["lost_tokens"], values["spikes_nll"], values["unrecovered"]) == (0, 0, 0)
    assert values["recovery"] is None
    assert values["final_nll"] == 4.0


def test_excess_is_that_of_a_loop(tmp_path: Path) -> None:
    rows = curve(0, bump=1.0)
    smooth = moving_median(np.array([row["loss/nll"] for row in rows]))
    naive, lowest = 0.0, math.inf
    for value in smooth:
        lowest = min(lowest, value)
        naive += value - lowest
    assert measure(run(tmp_path / "a", rows)).values["excess"] == pytest.approx(naive)


def test_tokens_of_a_spike_are_lost(tmp_path: Path) -> None:
    values = measure(run(tmp_path / "a", curve(0, bump=1.0))).values
    assert values["spikes_nll"] == pytest.approx(1000 / (STEPS - SILENT["median_mad"]))
    assert values["lost_tokens"] == 64 * 10
    assert values["recovery"] == 10


def test_a_run_that_diverged_counts_as_its_initial_loss_to_the_planned_end(tmp_path: Path) -> None:
    rows = curve(0)[:30]
    rows[-1]["loss/nll"] = "NaN"
    values = measure(run(tmp_path / "a", rows, status="diverged")).values
    initial = rows[0]["loss/nll"]
    assert (values["final_nll"], values["capped"], values["diverged"], values["survived"]) == (initial, 1, 1, 0)
    assert values["lost_tokens"] == 64 * (STEPS - 30 + 1)
    assert values["excess"] > (STEPS - 30) * 2


def test_a_final_loss_above_the_initial_one_counts_as_that(tmp_path: Path) -> None:
    rows = curve(0)
    rows[-1]["validation/nll"] = 12.0
    values = measure(run(tmp_path / "a", rows)).values
    assert (values["final_nll"], values["capped"], values["diverged"]) == (rows[0]["loss/nll"], 1, 0)
    assert values["survived"] == 0


def test_stalls_are_no_survival_and_abandoned_ones_do_not_count(tmp_path: Path) -> None:
    events: list[Row] = [{"event": "stall", "step": 50}, {"event": "saturated", "step": 50, "abandoned": 1}]
    values = measure(run(tmp_path / "a", curve(0), events=events)).values
    assert (values["stalls"], values["saturated"], values["survived"]) == (1, 0, 0)


def test_steps_that_a_rewind_took_back_are_lost(tmp_path: Path) -> None:
    events: list[Row] = [{"event": "rewind", "step": 20, "from_step": 27, "to_step": 20}]
    assert measure(run(tmp_path / "a", curve(0), events=events)).values["lost_tokens"] == 64 * 7


def test_growth_is_last_over_first_and_a_metric_that_is_not_there_has_none(tmp_path: Path) -> None:
    rows = curve(0)
    rows[30]["logit/std"] = 10.0
    values = measure(run(tmp_path / "a", rows)).values
    first = 1 + 1 / STEPS
    assert values["logits_growth"] == pytest.approx(2 / first)
    assert values["logits_max"] == pytest.approx(10 / first)
    assert values["residual_growth"] is None


def test_the_effective_rate_is_that_of_the_updates_that_were_made(tmp_path: Path) -> None:
    rows = curve(0)
    for row in rows:
        row |= {"intervention/a/update_scale": 0.5, "intervention/b/update_scale": 0.8, "intervention/c/skipped": 0.0}
        row |= {"intervention/c/scale": 0.25}
    for row in rows[:15]:
        row["intervention/c/skipped"] = 1.0
    values = measure(run(tmp_path / "a", rows)).values
    assert values["update_factor"] == pytest.approx(0.4 * 0.75)
    assert values["effective_rate"] == pytest.approx(0.01 * 0.4 * 0.75)
    assert values["gradient_scale"] == 0.25


def test_the_size_of_updates_is_the_geometric_mean_of_the_groups(tmp_path: Path) -> None:
    rows = curve(0)
    other = [{**row, "update_rms/norm": 0.01} for row in rows]
    rows = [{**row, "update_rms/head": 0.02, "update_rms/norm": 0.08} for row in rows]
    assert update_size(run(tmp_path / "a", rows), run(tmp_path / "b", other)) == pytest.approx(4.0)
    assert update_size(run(tmp_path / "c", curve(0)[:10]), run(tmp_path / "d", curve(0)[10:])) is None


@pytest.mark.parametrize("rule", SILENT)
def test_a_rule_says_nothing_before_the_values_that_it_needs(rule: str) -> None:
    needed = SILENT[rule]
    calm = 4 + np.random.default_rng(0).normal(0, 0.01, needed + 30)

    def first_flagged(jump: int) -> int | None:
        values = calm + np.where(np.arange(len(calm)) >= jump, 50.0, 0.0)
        found = detect_series(make_detector(rule, "loss/nll"), np.arange(len(calm)), values)
        return min((event.start_step for event in found), default=None)

    assert first_flagged(needed) == needed
    assert first_flagged(needed - 1) != needed - 1
    steps = np.arange(1, needed + 31)
    assert find_spikes(rule, "loss/nll", steps, calm, own_from=1, warmup_steps=0).steps == 30


def test_spikes_before_a_branch_are_not_its_own() -> None:
    steps, values = np.arange(1, 101), np.full(100, 4.0) + np.random.default_rng(0).normal(0, 0.01, 100)
    values[40:44] += 3
    values[80:84] += 3
    whole = find_spikes("median_mad", "loss/nll", steps, values, own_from=1, warmup_steps=0)
    branch = find_spikes("median_mad", "loss/nll", steps, values, own_from=61, warmup_steps=0)
    assert [event.start_step for event in whole.found] == [41, 81]
    assert [event.start_step for event in branch.found] == [81]
    assert branch.steps == 40


def test_what_the_runs_own_watch_has_told_is_taken_only_from_the_default_rule(tmp_path: Path) -> None:
    events = [spike("loss/nll", 41)]
    watched = {"detector": "median_mad", "signals": ["loss/nll"]}
    one = run(tmp_path / "a", curve(0), events=events, config=config(0, detection=watched))
    assert [event.peak_step for event in told(one, "loss/nll") or []] == [41]
    assert told(one, "grad_norm/total") is None
    other = run(tmp_path / "b", curve(0), config=config(0, detection=watched | {"detector": "olmo2"}))
    assert told(other, "loss/nll") is None


def test_damage_is_held_against_the_calm_run(tmp_path: Path) -> None:
    calm = measure(run(tmp_path / "calm", curve(0)))
    hit = run(tmp_path / "hit", curve(0, bump=1.0))
    found = damage(hit, measure(hit), calm)
    assert found["damage_excess"] == pytest.approx(10.0)
    assert found["damage_height"] == pytest.approx(1.0)
    assert (found["back"], found["back_steps"], found["damage_nll"]) == (1, 10, 0.0)


def test_under_a_stress_from_the_first_step_on_the_noise_is_that_of_the_whole_calm_run(tmp_path: Path) -> None:
    """A run with other noise and no damage at all is back at once, or within the few steps that noise may take."""
    for seed in range(8):
        calm = measure(run(tmp_path / f"calm{seed}", curve(seed)))
        other = run(tmp_path / f"other{seed}", curve(100 + seed))
        found = damage(other, measure(other), calm)
        assert (found["back"], found["back_steps"]) == (1, 0)


def test_a_branch_without_the_run_it_comes_from_has_no_initial_loss(tmp_path: Path) -> None:
    """Its first NLL, which training has lowered already, is no cap on its last one."""
    calm = run(tmp_path / "calm", curve(0))
    rows = curve(0, first=31)
    rows[-1]["validation/nll"] = 5.0
    branch = run(tmp_path / "branch", rows, config=config(0, branch_from="calm@30"))
    keys = ("final_nll", "initial_nll", "capped")
    assert [measure(branch).values[key] for key in keys] == [5.0, None, 0]
    initial = curve(0)[0]["loss/nll"]
    assert [measure(branch, calm).values[key] for key in keys] == [5.0, initial, 0]
    lost = run(tmp_path / "lost", rows[:5], config=config(0, branch_from="calm@30"), status="diverged")
    assert [measure(lost).values[key] for key in (*keys, "excess")] == [None, None, None, None]
    assert measure(lost, calm).values["final_nll"] == initial


def test_a_stressed_run_that_diverged_is_never_back(tmp_path: Path) -> None:
    calm = measure(run(tmp_path / "calm", curve(0)))
    hit = run(tmp_path / "hit", curve(0, bump=1.0)[:42], status="diverged")
    found = damage(hit, measure(hit), calm)
    assert (found["back"], found["back_steps"]) == (0, STEPS - 40 + 1)
    assert found["damage_excess"] > 2.5 * (STEPS - 42)

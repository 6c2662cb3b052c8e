"""The signals' benchmark: its statistics against naive ones, and a tiny real run of it."""

import json
import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from analysis.results import markdown_tables
from benchmarks import signals
from benchmarks.autopsy import write_recipe
from benchmarks.signals import (
    ARMS,
    FAULT,
    LASTS,
    SIGNALS,
    THRESHOLDS,
    chosen,
    draws,
    flags,
    measured,
    predicted,
    rank_correlation,
    separation,
    summary,
    tables,
    with_interval,
    within,
)
from configs.load import load_config


def row(arm="rate 3e-3", seed=0, safe=4.0, rise=0.0, predicted=None, **values):
    return {
        "arm": arm,
        "seed": seed,
        "step": 1,
        "safe_multiple": safe,
        "rise": rise,
        "signals": values,
        "predicted": predicted or {},
    }


def test_the_rank_correlation_is_spearmans_with_ties():
    random = np.random.default_rng(0)
    first, second = random.integers(6, size=50).astype(float), random.integers(4, size=50).astype(float)
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic)
    assert math.isnan(rank_correlation(np.ones(5), np.arange(5.0)))


def test_within_arms_a_difference_between_them_does_not_count():
    arms = np.array(["a"] * 3 + ["b"] * 4 + ["c"] * 2)
    first = np.array([1, 2, 3, 101, 102, 103, 104, 7, 7.0])
    second = np.array([3, 2, 1, 304, 303, 302, 301, 1, 2.0])
    assert rank_correlation(first[:7], second[:7]) > 0
    assert within(arms, first, second) == pytest.approx(-1)  # "c" does not vary
    second[3:7] = [301, 302, 303, 304]
    assert within(arms, first, second) == pytest.approx((3 * -1 + 4 * 1) / 7)


def test_the_separation_is_a_probability_over_pairs():
    random = np.random.default_rng(1)
    values, positive = random.integers(5, size=30).astype(float), random.random(30) < 0.3
    pairs = [(p > n) + 0.5 * (p == n) for p in values[positive] for n in values[~positive]]
    assert separation(values, positive) == pytest.approx(np.mean(pairs))
    assert math.isnan(separation(values, np.zeros(30, bool)))


def test_the_interval_draws_whole_runs():
    rows = [row(arm, seed, safe=10 * seed) for arm in ("rate 3e-3", "rate 1e-2") for seed in range(3) for _ in range(2)]
    drawn = draws(rows)
    for index in drawn[:50]:
        assert len(index) == len(rows)
        counts = np.bincount(index, minlength=len(rows))
        assert (counts[::2] == counts[1::2]).all(), "both steps of a run, or none"
    middle, low, high = with_interval(lambda x: float(x.mean()), drawn, np.array([r["safe_multiple"] for r in rows]))
    assert middle == 10
    assert 0 <= low < 10 < high <= 20


def test_thresholds_count_what_they_flag_and_what_they_miss():
    rows = [
        row(safe=4.0, **{"edge/kappa": 0.9, "adam/sign_like": 0.3}),
        row(safe=math.inf, **{"edge/kappa": 0.4, "adam/sign_like": 0.1}),
        row(safe=1.9, **{"edge/kappa": 0.3, "adam/sign_like": None}),
        row(safe=0.0, **{"edge/kappa": None, "adam/sign_like": 0.4}),
    ]
    found = flags(rows, "edge/kappa", 0.5)
    assert (found["healthy"], found["flagged"], found["dangerous"], found["missed"]) == (2, 1, 2, 1)
    found = flags(rows, "adam/sign_like", 0.2)
    assert (found["flagged"], found["missed"]) == (1, 1)


def test_predictions_are_compared_as_factors_where_both_are_finite():
    rows = [
        row(safe=s, predicted={"edge/kappa": p}) for s, p in [(4, 4), (4, 1), (2, 16), (math.inf, 2), (0, 2), (3, None)]
    ]
    rows.append(row(safe=2, predicted={"edge/kappa": math.inf}))
    found = predicted(rows, "edge/kappa")
    assert (found["steps"], found["factor"], found["close"]) == (3, 1.0, pytest.approx(1 / 3))


def test_a_signal_that_is_the_truth_knows_everything_and_none_is_called_by_another_sign():
    random = np.random.default_rng(2)
    rows = [
        row(
            arm, seed, safe=(safe := float(random.uniform(0.5, 8))), rise=1 / safe - 0.5, **{"edge/kappa": 1 - 1 / safe}
        )
        for arm in ("rate 3e-3", "rate 1e-2")
        for seed in range(3)
        for _ in range(5)
    ]
    found = signals.correlations(rows, "edge/kappa")
    assert found["all"] == [pytest.approx(1)] * 3
    assert found["within"] == [pytest.approx(1)] * 3
    assert found["rise"][0] == pytest.approx(1)
    assert (found["dangerous"], found["harmful"], found["steps"]) == (1.0, 1.0, 30)


def test_the_steps_are_named_beforehand_and_every_arm_is_valid(workspace):
    assert chosen("rate 3e-3")[:6] == [5, 10, 15, 20, 40, 60]
    for name, overrides in ARMS.items():
        config = load_config(workspace / "tiny.yaml", ["train.batch_size=16", "train.steps=300", *overrides])
        assert bool(config.stress) == name.startswith("stress")
        if config.stress:
            options = config.stress[0].options
            assert set(range(options["step"], options["step"] + options["steps"])) <= set(chosen(name))
            assert (options["step"], options["steps"]) == (FAULT, LASTS)
    assert {name for name, _ in THRESHOLDS} <= set(SIGNALS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    write_recipe(folder)
    recipe = folder / "small.yaml"
    recipe.write_text(recipe.read_text().replace("sequence_length: 64", "sequence_length: 16"))
    return folder


def test_a_tiny_run_is_measured_once_and_is_the_run_without_measuring(folder, monkeypatch):
    steps = [5, 9, 10]
    rows = measured(folder, "rate 1e-1", 1, steps) + measured(folder, "rate 3e-3", 1, steps)
    assert [r["step"] for r in rows] == 2 * steps
    for each in rows:
        assert set(SIGNALS) <= each["signals"].keys() | {"gradient/cosine_with_last", "update/cosine_with_last"}
        assert math.isfinite(each["rise"])
        assert each["safe_multiple"] >= 0
    hot, calm = rows[:3], rows[3:]
    assert np.median([r["safe_multiple"] for r in hot]) < np.median([r["safe_multiple"] for r in calm])
    (folder / "runs" / "rate_3e_3_seed1.json").unlink()
    assert measured(folder, "rate 3e-3", 1, [10]) == calm[-1:], "measuring other steps changes nothing"
    monkeypatch.setattr(signals, "config_of", None)  # would be needed to train
    assert measured(folder, "rate 1e-1", 1, steps) == hot
    monkeypatch.setattr(signals, "RESAMPLES", 20)
    found = summary(rows)
    assert [a["steps"] for a in found["arms"]] == [3, 3]
    parts = markdown_tables(tables(found))
    assert [r["arm"] for r in parts["arm"]] == ["rate 3e-3", "rate 1e-1"]
    assert [r["signal"] for r in parts["signal"]] == list(SIGNALS)
    assert len(parts["threshold"]) == len(THRESHOLDS)
    json.dumps(found)

"""The simulation of intervals: its data and its counting against naive ones, and a small real run of it."""

import math

import numpy as np
import pytest
from scipy.stats import binom, poisson

from analysis.compare.rates import poisson_rate, proportion
from analysis.compare.seeds import paired
from analysis.results import markdown_tables
from benchmarks import coverage
from benchmarks.coverage import (
    NOISES,
    PAGE,
    SHARED,
    TRUE,
    Intervals,
    clustered_counts,
    intervals,
    judged,
    main,
    none,
    percentile_intervals,
    rate_coverage,
    runs,
    share_coverage,
)


@pytest.mark.parametrize("draw", [coverage.normal, coverage.heavy, coverage.skewed])
def test_noise_has_mean_0_and_variance_1(draw):
    values = draw(np.random.default_rng(0), (400, 5000))
    assert values.mean() == pytest.approx(0, abs=0.005)
    # of heavy tails the sample's variance hardly settles: compare the middle
    if draw is coverage.heavy:
        assert np.quantile(values, 0.9) == pytest.approx(1.6377 / math.sqrt(3), abs=0.01)
    else:
        assert values.var() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("name", NOISES)
def test_arms_differ_by_the_true_difference_and_vary_as_said(name):
    noise = NOISES[name]
    arm, baseline = noise.draw(np.random.default_rng(1), 2000, 200)
    assert (arm - baseline).mean() == pytest.approx(TRUE, abs=0.03)
    if "t3" not in name:
        assert (arm - baseline).std() == pytest.approx(noise.spread, rel=0.03)
    own = 0 if noise.baseline is none else 1
    assert baseline.var() == pytest.approx(SHARED**2 + own, rel=0.03)
    shared = np.cov(arm.ravel(), baseline.ravel())[0, 1]
    assert shared == pytest.approx(SHARED**2 if noise.shared else 0, abs=0.2)


def test_counted_is_how_often_an_interval_holds_the_truth():
    found = Intervals(np.array([0.0, 1.0, -3.0, 0.4]), np.array([1.0, 2.0, -1.0, 0.5]), 0.5)
    assert found.coverage == 2 / 4
    # if the truth were 3 all intervals were 2.5 higher: only the third would hold zero
    assert found.power(3.0) == 3 / 4
    assert found.power(0.5) == 3 / 4


@pytest.mark.parametrize("seeds", [4, 12])
def test_power_at_another_effect_is_that_of_data_with_this_effect(seeds):
    arm, baseline = NOISES["normal"].draw(np.random.default_rng(2), 60, seeds)
    found = intervals([each.effect for each in judged(arm, baseline)])
    moved = judged(arm + 1.0, baseline)
    assert found.power(TRUE + 1.0) == np.mean([each.p < 0.05 for each in moved])


def test_each_experiment_is_judged_by_the_function_that_tables_use():
    arm, baseline = NOISES["normal"].draw(np.random.default_rng(3), 3, 12)
    assert judged(arm, baseline) == [paired(runs(arm[x]), runs(baseline[x]), seed=x) for x in range(3)]


def test_the_percentile_bootstrap_is_between_percentiles_of_resampled_means():
    random = np.random.default_rng(4)
    values = random.lognormal(size=(2, 9))
    found = percentile_intervals(values, 1.0, random)
    for value_S, low, high in zip(values, found.low_X, found.high_X, strict=True):
        means = [np.mean(random.choice(value_S, 9)) for _ in range(8000)]
        expected = np.quantile(means, [0.025, 0.975])
        assert (low, high) == pytest.approx(expected, abs=0.05 * np.ptp(expected))


def test_coverage_of_exact_intervals_is_summed_over_all_outcomes():
    two_sided, one_sided = share_coverage(6, np.array([0.1, 0.45]))
    for share, both, one in zip((0.1, 0.45), two_sided, one_sided, strict=True):
        held = [k for k in range(7) if proportion(k, 6).low <= share <= proportion(k, 6).high]
        assert both == pytest.approx(sum(binom.pmf(k, 6, share) for k in held))
        assert one == pytest.approx(sum(binom.pmf(k, 6, share) for k in range(7) if share <= proportion(k, 6).at_most))
    (both,), _ = rate_coverage(np.array([3.3]))
    held = [k for k in range(60) if poisson_rate(k, 1).low <= 3.3 <= poisson_rate(k, 1).high]
    assert both == pytest.approx(sum(poisson.pmf(k, 3.3) for k in held))


def test_exact_intervals_hold_the_truth_at_least_as_often_as_they_say():
    for n in (1, 3, 8, 30):
        two_sided, one_sided = share_coverage(n, np.linspace(0.01, 0.99, 99))
        assert two_sided.min() >= 0.95 and one_sided.min() >= 0.95
    two_sided, one_sided = rate_coverage(np.geomspace(0.05, 40, 200))
    assert two_sided.min() >= 0.95 and one_sided.min() >= 0.95


@pytest.mark.parametrize("dispersion", [1, 2, 5])
def test_clustered_counts_have_their_mean_and_dispersion(dispersion):
    counts = clustered_counts(np.random.default_rng(5), (200_000,), 3.0, dispersion)
    assert counts.mean() == pytest.approx(3.0, rel=0.02)
    assert counts.var() / counts.mean() == pytest.approx(dispersion, rel=0.03)


@pytest.mark.parametrize("n", [3, 8])
def test_the_interval_of_normal_differences_covers_95_percent(n):
    arm, baseline = NOISES["normal"].draw(np.random.default_rng(6), 4000, n)
    found = intervals([each.effect for each in judged(arm, baseline)])
    assert 0.93 <= found.coverage <= 0.97  # the standard error of a share of 4000 is 0.0034


def test_a_small_run_writes_the_tables_it_prints(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(coverage, "SEEDS", (3, 12, 20))
    main(["--out", str(tmp_path / "new"), "--experiments", "10"])
    text = (tmp_path / "new" / PAGE).read_text(encoding="utf-8")
    assert capsys.readouterr().out == text + "\n"
    tables = markdown_tables(text)
    assert len(tables) == 10
    assert [row["coverage of the 95% interval"] for row in tables["coverage of the 95% interval"]] == list(NOISES)
    shares = [float(row[f"{n} seeds"]) for row in tables["coverage of Student's t alone"] for n in (3, 12, 20)]
    assert all(0 <= share <= 1 for share in shares)
    # up to ten seeds the interval is Student's t
    first, second = tables["coverage of the 95% interval"], tables["coverage of Student's t alone"]
    assert [row["3 seeds"] for row in first] == [row["3 seeds"] for row in second]


def test_no_experiments_are_refused(capsys):
    from common.command import exit_status

    assert exit_status(lambda: main(["--experiments", "0"])) == 2
    assert capsys.readouterr().err == "error: --experiments: must be at least 1, but is 0\n"

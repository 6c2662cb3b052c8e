"""Runs of one seed at several rates: the seed is the unit."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t, ttest_rel

from analysis.compare.rates import proportion
from analysis.stability.compare import Study, study
from analysis.stability.runs import find_runs
from analysis.stability.tables import share_text
from tests.analysis.written import write_run

from .made import config, curve, write_suite

LEVELS = {"base": {0.01: 4.0, 0.1: 5.0}, "other": {0.01: 4.0, 0.1: 4.5}}


def with_diverged(folder: Path, seeds: int, lost: int, levels: Mapping[str, Mapping[float, float]] = LEVELS) -> Study:
    """The runs of the baseline at the rate 0.1 with the first ``lost`` seeds diverge."""
    suite = write_suite(folder, levels, range(seeds))
    for seed in range(lost):
        run = suite / f"base_lr0.1_seed{seed}"
        shutil.rmtree(run)
        write_run(run, curve(seed)[:20], config=config(seed, 0.1, head={"kind": "base"}), status="diverged")
    return study(find_runs([str(suite)]))


def test_shares_over_all_rates_have_an_interval_and_a_test_over_seeds(tmp_path: Path) -> None:
    found = with_diverged(tmp_path / "suite", 4, 3)
    base, other = (share for share in found.shares("diverged", "calm") if share.rate == "all")
    own = [0.5, 0.5, 0.5, 0.0]
    half = t.ppf(0.975, 3) * np.std(own, ddof=1) / 2
    assert (base.share.k, base.share.n) == (3, 8)
    assert (base.share.low, base.share.high) == pytest.approx((max(0, 0.375 - half), 0.375 + half))
    assert share_text(base.share) == f"3/8 [0, {100 * (0.375 + half):.0f}]%"
    assert share_text(other.share) == "0/8"
    assert other.p == 0.25  # 4 of the 16 choices of signs of three differences of a half and one of zero
    assert other.verdict == "too few seeds"  # four have 2 * 0.5^4 = 0.125 at least


def test_beyond_twelve_seeds_pooled_shares_are_tested_by_students_t(tmp_path: Path) -> None:
    _, other = with_diverged(tmp_path / "twelve", 12, 11).shares("diverged", "calm")
    assert other.p == 2 * 0.5**11
    _, other = with_diverged(tmp_path / "thirteen", 13, 11).shares("diverged", "calm")
    assert other.p == pytest.approx(ttest_rel([0.0] * 13, [0.5] * 11 + [0.0] * 2).pvalue)
    _, other = with_diverged(tmp_path / "all", 13, 13).shares("diverged", "calm")
    assert other.p == 2 * 0.5**13  # equal differences have no Student's t
    _, other = with_diverged(tmp_path / "none", 13, 0).shares("diverged", "calm")
    assert other.p == 1.0


def test_shares_at_one_rate_are_exact(tmp_path: Path) -> None:
    found = with_diverged(tmp_path / "suite", 4, 3)
    base, other = found.shares("diverged", "calm", 0.1)
    assert base.share == proportion(3, 4)
    assert other.p == 0.25  # McNemar: three seeds that all differ


def test_two_seeds_have_plain_counts(tmp_path: Path) -> None:
    found = with_diverged(tmp_path / "suite", 2, 1)
    base, other = found.shares("diverged", "calm")
    assert share_text(base.share) == "1/4"
    assert math.isnan(other.p)
    spikes = found.spike_rate("nll", "base", "calm")
    assert spikes is not None
    assert math.isnan(spikes.high)


def test_spikes_of_all_rates_are_counted_by_seed(tmp_path: Path) -> None:
    found = with_diverged(tmp_path / "suite", 3, 0)
    rate = found.spike_rate("nll", "other", "calm")
    assert rate is not None
    assert (rate.runs, rate.events) == (3, 0)
    assert rate.high == pytest.approx(3.689 / rate.exposure, rel=1e-3)


@pytest.mark.parametrize(
    ("seeds", "lost", "arms", "verdict"),
    [
        (6, 0, 1, "no difference shown"),  # 2 * 0.5^6 = 0.03
        (6, 6, 1, "better"),
        (6, 0, 2, "too few seeds"),
        (6, 6, 2, "better in all"),
        (6, 5, 2, "too few seeds"),
        (5, 0, 1, "too few seeds"),
        (7, 0, 3, "no difference shown"),  # 3 * 2 * 0.5^7 = 0.047
        (7, 0, 4, "too few seeds"),
    ],
)
@pytest.mark.parametrize("rate", ["all", 0.1])
def test_so_few_seeds_that_they_can_show_nothing_are_told(
    tmp_path: Path, seeds: int, lost: int, arms: int, verdict: str, rate: float | str
) -> None:
    """Over several rates, or one; arms of which none lost a run against a baseline that lost some."""
    more = {f"other{number}": LEVELS["other"] for number in range(arms)}
    found = with_diverged(tmp_path / "suite", seeds, lost, {"base": LEVELS["base"], **more})
    assert [one.verdict for one in found.shares("diverged", "calm", rate)] == ["", *[verdict] * arms]


def test_the_control_is_adjusted_for_no_other_arm(tmp_path: Path) -> None:
    levels = {"base": LEVELS["base"], "again": LEVELS["base"], "one": LEVELS["base"], "two": LEVELS["base"]}
    found = study(find_runs([str(write_suite(tmp_path / "suite", levels, range(6), "again"))]))
    verdicts = {one.arm: one.verdict for one in found.shares("survived", "calm")}
    assert verdicts == {"base": "", "again": "no difference shown", "one": "too few seeds", "two": "too few seeds"}

"""Which signal was ahead of a spike: on made-up runs whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.reproduce.a7_rms_leads import RmsLeads
from benchmarks.reproduce.a8_order import Order
from benchmarks.reproduce.a25_sign_like import SignLike
from benchmarks.reproduce.a27_kurtosis import Kurtosis
from benchmarks.reproduce.base import Seed, Verdict
from benchmarks.reproduce.intervals import low
from benchmarks.reproduce.memorised_arms import ARMS
from benchmarks.reproduce.precursors import Spike, doubled, lead, led, spikes

STEPS = 400
GAP = 90
"""Steps from one spike to the next."""


def test_a_spike_begins_where_the_loss_has_doubled_and_ends_half_of_the_way_back():
    loss = np.array([1.0] * 30 + [1.5, 2.1, 8.0, 4.0, 2.7, 1.0] + [1.0] * 30)
    assert spikes(loss) == [Spike(31, 32)]


def test_a_rise_that_is_less_than_fourfold_is_none_and_what_is_lowest_is_learnt_anew_after_one():
    assert spikes(np.array([1.0] * 30 + [2.5, 1.0] * 3)) == []
    higher = np.array([1.0] * 30 + [10.0, 3.0] + [3.0] * 10 + [5.9] * 5)  # not doubled since it came back to 3
    assert spikes(higher) == [Spike(30, 30)]


def test_a_spike_at_the_end_counts_and_the_first_steps_do_not():
    assert spikes(np.array([1.0, 9.0] + [1.0] * 30 + [9.0])) == [Spike(32, 32)]


def test_a_signal_has_doubled_against_the_lowest_of_the_last_steps():
    signal = np.array([1.0] * 30 + [2.1] * 40)
    assert np.flatnonzero(doubled(signal)).tolist() == list(range(30, 50))


def test_a_lead_counts_from_the_first_departure_near_the_spike():
    marks = np.zeros(100, dtype=bool)
    assert lead(marks, Spike(60, 62)) is None
    marks[[10, 55, 58]] = True
    assert lead(marks, Spike(60, 62)) == 5
    assert lead(marks, Spike(52, 62)) == -3


def run(seed: int, *, update: int | None = None, gradient: int | None = None, rms=None, sign=None, kurtosis=None):
    """Columns of a run with a spike every GAP steps; each signal departs by so many steps before the spike's first, for two."""
    random = np.random.default_rng(seed)
    steps = np.arange(STEPS)
    starts = [s + int(random.integers(3)) for s in range(GAP, STEPS - 10, GAP)]

    def signal(usual: float, jump: float, ahead: int | None) -> list[float]:
        values = usual * np.exp(random.normal(0, 0.03, STEPS))
        for start in starts if ahead is not None else []:
            values[start - ahead : start - ahead + 2] *= jump
        return values.tolist()

    loss = np.exp(random.normal(0, 0.03, STEPS))
    for start in starts:
        loss[start : start + 3] *= 10
    return {
        "step": (steps + 1).tolist(),
        "loss/nll": loss.tolist(),
        "update_rms/embedding": signal(1e-3, 5, update),
        "update_rms/head": signal(1e-3, 5, update),
        "grad_norm/total": signal(1.0, 5, gradient),
        **{f"adam_rms/{group}": signal(1.0, 3, rms) for group in ("embedding", "layer_00", "layer_01", "head")},
        "adam/sign_like": signal(0.05, 5, sign),
        "adam/momentum_cosine": signal(0.1, 1, None),
        "hidden_kurtosis/layer_00": signal(1.0, 2, kurtosis),
    }


def of(**signals) -> list[Seed]:
    return [Seed(n, {}, {arm: run(10 * n + i, **signals) for i, arm in enumerate(ARMS)}) for n in range(3)]


@pytest.mark.parametrize(("ahead", "verdict"), [(4, "reproduced"), (15, "not reproduced"), (-2, "not reproduced")])
def test_the_rms_must_lead_by_one_to_eight_steps(ahead, verdict):
    assert RmsLeads().judge(of(rms=ahead)).verdict == verdict


def test_an_rms_that_never_passes_the_limit_says_nothing():
    outcome = RmsLeads().judge(of())
    assert outcome.verdict == Verdict.NOT_AT_THIS_SCALE
    assert "it is above 2.3 at 0 steps" in outcome.told


@pytest.mark.parametrize(
    ("update", "gradient", "verdict"),
    [(3, -2, "reproduced"), (-2, 3, "not reproduced"), (3, 3, "not reproduced"), (None, -2, "not reproduced")],
)
def test_the_update_must_double_before_the_loss_and_the_gradient_after(update, gradient, verdict):
    assert Order().judge(of(update=update, gradient=gradient)).verdict == verdict


@pytest.mark.parametrize(("ahead", "verdict"), [(6, "reproduced"), (-3, "not reproduced"), (None, "not reproduced")])
def test_the_share_of_signs_must_double_before_a_spike(ahead, verdict):
    assert SignLike().judge(of(sign=ahead)).verdict == verdict


def test_a_signal_that_departs_all_the_time_is_no_better_than_chance():
    seeds = of(sign=6)
    for seed in seeds:
        for rows in seed.measured.values():
            rows["adam/sign_like"] = [0.05, 0.2] * (STEPS // 2)
    outcome = SignLike().judge(seeds)
    assert outcome.verdict == Verdict.NOT_REPRODUCED
    assert "+0.00 above chance" in outcome.told


@pytest.mark.parametrize("judge", [RmsLeads, Order, SignLike, Kurtosis])
def test_without_spikes_nothing_is_said(judge):
    seeds = of(rms=4, update=3, gradient=-2, sign=5, kurtosis=16)
    for seed in seeds:
        for rows in seed.measured.values():
            rows["loss/nll"] = [1.0] * STEPS
    assert judge().judge(seeds).verdict == Verdict.NOT_AT_THIS_SCALE


def test_spikes_of_two_seeds_are_too_few():
    assert Order().judge(of(update=3, gradient=-2)[:2]).verdict == Verdict.NOT_AT_THIS_SCALE


def test_the_kurtosis_and_cusum_must_both_lead_by_the_published_steps():
    seeds = of(kurtosis=16)
    assert Kurtosis().judge(seeds).verdict == Verdict.NOT_REPRODUCED  # the loss, and so CUSUM, gives no warning
    for seed in seeds:
        for rows in seed.measured.values():
            loss = np.array(rows["loss/nll"])
            for spike in spikes(loss):
                loss[spike.start - 10] *= 1.6  # not doubled, but 15 sigmas
            rows["loss/nll"] = loss.tolist()
            rows["hidden_kurtosis/layer_00"] = quiet(rows["hidden_kurtosis/layer_00"])
    assert Kurtosis().judge(seeds).verdict == Verdict.REPRODUCED


def quiet(values: list[float]) -> list[float]:
    """Without the noise, so that nothing but the planted departures is out of range."""
    return [2.0 if value > 1.5 else 1.0 for value in values]


def test_leads_are_told_for_each_seed_and_the_interval_is_over_seeds():
    found = led(of(rms=4), list(ARMS), lambda rows: np.array(rows["adam_rms/embedding"]) > 2.3, 1, 8)
    assert found.spikes == 3 * len(ARMS) * 4
    assert set(found.leads) == {4}
    assert (found.share.mean, found.share.n) == (1.0, 3)
    assert low(found.above_chance) > 0.8  # all seeds agree, so that the interval has no width

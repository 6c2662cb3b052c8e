"""Shapes of faults, noise from real logs, and logs of fewer steps."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.detectors import logged, logged_report
from benchmarks.detectors.cases import Fault
from benchmarks.detectors.logged import AS_IT_WAS, LATE, TO_BE_FOUND_IN, cases, inject, sources
from benchmarks.detectors.measure import AFTER, match, outcomes, quiet_values
from benchmarks.detectors.shapes import BLOOM_HEIGHT, as_logged, bloom, gradual, late_rise, sharp_decay
from benchmarks.residuals import LONGEST, SHORTEST, SOURCES, bootstrap, derive, load_noise, standardised
from common.errors import InputError

FEW = {"spikes": {1: 1, 20: 1}, "rises": {1: 2}}


def test_a_triangular_spike_by_hand():
    np.testing.assert_allclose(gradual(3, 2, "triangular"), [0.1, 0.4, 0.7, 1.0, 0.55, 0.1])


def test_an_exponential_spike_by_hand():
    np.testing.assert_allclose(gradual(2, 4, "exponential"), [0.1, 10**-0.5, 1, 10**-0.25, 10**-0.5, 10**-0.75, 0.1])


@pytest.mark.parametrize("form", ["triangular", "exponential"])
def test_a_spike_as_in_pythia_160m_takes_its_steps_from_a_tenth_to_the_peak_and_back(form):
    heights = gradual(16, 22, form)
    assert np.argmax(heights) == 16
    assert heights.max() == 1
    assert np.flatnonzero(heights >= 0.1 - 1e-12).tolist() == list(range(16 + 1 + 22))


def test_a_sharp_spike_is_at_its_peak_at_once_and_falls_by_e_in_its_time_constant():
    heights = sharp_decay(4.0)
    assert heights[0] == 1
    assert heights[4] == pytest.approx(np.exp(-1))
    assert len(heights) == 1 + 9  # 4 ln 10 = 9.2
    assert heights[-1] > 0.1 > heights[-1] * np.exp(-1 / 4)


def test_a_late_rise_stays():
    assert late_rise(4, 3).tolist() == [0.25, 0.5, 0.75, 1, 1, 1, 1]
    assert late_rise(1, 2).tolist() == [1, 1, 1]


def test_the_norms_of_bloom_are_those_that_were_logged():
    norms = 0.24 * np.exp(BLOOM_HEIGHT * bloom())
    np.testing.assert_allclose(norms[:5], [0.95, 2.4, 15.9, 145, 960])
    np.testing.assert_allclose(norms[5], 0.24 * np.sqrt(960 / 0.24))
    assert len(norms) == 8


def test_a_spike_of_20_steps_is_one_value_of_a_log_of_every_20th():
    heights = np.arange(20.0)
    assert [as_logged(heights, 20, offset).tolist() for offset in (0, 7, 19)] == [[0], [7], [19]]
    assert as_logged(heights, 10, 3).tolist() == [3, 13]
    assert as_logged(heights, 1, 0).tolist() == heights.tolist()


def test_noise_is_made_of_blocks_of_neighbours():
    drawn = bootstrap(np.random.default_rng(0), np.arange(1000.0), 5000)
    assert len(drawn) == 5000
    edges = np.flatnonzero(np.diff(drawn) != 1) + 1
    lengths = np.diff(edges)
    assert lengths.min() >= SHORTEST
    assert len(lengths) > 100
    assert np.median(lengths) == pytest.approx((SHORTEST + LONGEST) / 2, abs=5)
    assert {0.0, 999.0} <= set(bootstrap(np.random.default_rng(0), np.arange(1000.0), 100_000))


@pytest.mark.parametrize("noise", load_noise(), ids=lambda noise: f"{noise.name} {noise.signal}")
def test_drawn_noise_has_mean_sigma_and_correlation_of_the_log(noise):
    drawn = bootstrap(np.random.default_rng(1), noise.residuals, 60_000)
    assert drawn.mean() == pytest.approx(noise.residuals.mean(), abs=0.03)
    assert robust(drawn) == pytest.approx(robust(noise.residuals), rel=0.03)
    # Of two neighbours one in about 35 pairs is from different blocks.
    assert lag_one(drawn) == pytest.approx(lag_one(noise.residuals) * 34 / 35, abs=0.03)


def test_the_file_has_the_residuals_of_its_sources_in_robust_sigmas():
    noises = load_noise()
    assert [(noise.name, noise.signal) for noise in noises] == [(source.log, source.signal) for source in SOURCES]
    for noise, source in zip(noises, SOURCES, strict=True):
        assert len(noise.residuals) == source.last - source.first + 1
        assert robust(noise.residuals) == pytest.approx(1, abs=0.05)
        assert abs(np.median(noise.residuals)) < 0.05


def test_residuals_are_distances_from_the_trend_in_sigmas():
    random = np.random.default_rng(0)
    noise = random.standard_normal(3000)
    residuals, sigma = standardised(5 - 1e-4 * np.arange(3000) + 0.02 * noise)
    assert sigma == pytest.approx(0.02, rel=0.05)
    assert np.corrcoef(residuals, noise)[0, 1] > 0.98


def test_a_folder_without_the_logs_is_a_mistake_that_names_the_file(tmp_path):
    with pytest.raises(InputError, match=r"pythia_160m-0\.parquet cannot be read"):
        derive(tmp_path)


def test_the_file_is_made_from_whole_logs(tmp_path):
    random = np.random.default_rng(0)
    for name in sorted({source.log for source in SOURCES}):
        noise = np.exp(0.1 * random.standard_normal(32_000))
        pd.DataFrame({"step": np.arange(32_000), "loss": noise, "grad_norm": 7 * noise}).to_parquet(
            tmp_path / f"{name}.parquet"
        )
    table = derive(tmp_path)
    assert [column[:2] for column in table.columns] == [(source.log, source.signal) for source in SOURCES]
    assert all(float(column[2]) == pytest.approx(0.1, rel=0.1) for column in table.columns)
    short = pd.read_parquet(tmp_path / "modded_1b.parquet").head(9_000)
    short.to_parquet(tmp_path / "modded_1b.parquet")
    with pytest.raises(InputError, match=r"modded_1b\.parquet has 1000 values at steps 8000 to 9499"):
        derive(tmp_path)


def test_the_splits_share_no_noise():
    tune, score = sources("tune"), sources("score")
    assert tune.keys() == score.keys()
    for source in tune:
        one, other = ({noise.residuals[:10].tobytes() for noise in split[source]} for split in (tune, score))
        assert not one & other
    for noise in load_noise():
        halves = [split[f"{noise.name} {noise.signal}"][0].residuals for split in (tune, score)]
        np.testing.assert_array_equal(np.concatenate(halves), noise.residuals)


def test_cases_are_the_same_at_every_call():
    for one, two in zip(cases("tune", **FEW), cases("tune", **FEW), strict=True):
        np.testing.assert_array_equal(one.values, two.values)
        assert one.faults == two.faults


def test_a_fault_is_as_high_as_it_says():
    values = np.zeros(100)
    fault = inject(values, 0.5, "gradual", 11, 6.0, np.array([0.2, 0.7, 0.4]))
    assert fault == Fault("gradual", 11, 13, 6.0, 1, pytest.approx(0.7 * 6))
    np.testing.assert_allclose(values[9:14], [0, 0.6, 2.1, 1.2, 0])
    assert np.count_nonzero(values) == 3


def test_a_fault_as_it_was_is_as_high_as_bloom():
    values = np.zeros(100)
    fault = inject(values, 0.1, "bloom", 11, AS_IT_WAS, bloom())
    assert np.exp(values.max()) == pytest.approx(960 / 0.24)
    assert fault.top == pytest.approx(np.log(4000) / 0.1)
    assert fault.rise == 4


def test_a_spike_that_would_last_to_the_end_of_the_log_is_left_out():
    values = np.zeros(100)
    assert inject(values, 0.5, "gradual", 60, 6.0, np.ones(3)) is None
    assert not values.any()


def test_faults_lie_in_their_log_apart_and_in_order():
    for case in cases("score", **FEW):
        assert all(1 <= fault.start <= fault.end <= len(case.values) for fault in case.faults)
        assert all(b.start - a.end >= logged.SPACING for a, b in zip(case.faults, case.faults[1:], strict=False))
        assert np.isfinite(case.values).all()
        for fault in case.faults:
            assert fault.top <= fault.size + 1e-9 or fault.size == AS_IT_WAS
            if case.every == 20 and fault.kind != "late rise":
                assert fault.length <= 4  # at most 66 steps


def test_a_late_rise_may_be_found_until_its_allowed_time_is_over_and_there_the_log_ends():
    late = list(cases("score", spikes={}, rises={50: 5}))
    assert {case.faults[0].size for case in late} == set(logged.RISE_SIZES)
    for case in late:
        (fault,) = case.faults
        complete = fault.start + fault.rise
        assert fault.end == complete + TO_BE_FOUND_IN == len(case.values)
        assert case.steps[0] == LATE + 50
        assert match([fault], [fault.start - 1]) == ([None], [fault.start - 1])
        for place in (fault.start, complete, complete + TO_BE_FOUND_IN):
            assert match([fault], [place, len(case.values)]) == ([place], [])
        assert match([fault], [complete + TO_BE_FOUND_IN + AFTER + 1])[0] == [None]


def test_the_tables_count_what_was_found():
    few = list(cases("score", spikes={1: 1, 10: 1, 20: 1, 50: 1, 100: 1}, rises={1: 1, 20: 1, 100: 1}))
    found = outcomes(few, {"level": ("level",), "loss_ratio": ("loss_ratio",)})
    text = logged_report.tables(few, found)
    faults = found["loss_ratio"].faults
    late = faults[faults["kind"] == "late rise"]
    assert 0 < late["hit"].mean() < 1
    (row,) = [line for line in logged_report.late_rises(found).splitlines() if line.startswith("| loss_ratio ")]
    assert row.split("|")[-2].strip() == f"{late['hit'].mean():.3f}"
    assert f"\n{len(late)} late rises." in text
    alarms = found["loss_ratio"].alarms
    quiet = sum(quiet_values(case) for case in few)
    assert len(alarms) > 0
    table = logged_report.false_alarms("all logs", [1], [1] * len(few), few, found)
    (row,) = [line for line in table.splitlines() if line.startswith("| loss_ratio ")]
    assert row.split("|")[-2].strip() == f"{1e4 * len(alarms) / quiet:.2f}"
    for heading in (
        "spikes hit, every step",
        "hit, by interval",
        "median delay, values",
        "false alarms per 10,000, losses every",
    ):
        assert f"| {heading} |" in text


def robust(values):
    return 1.4826 * np.median(np.abs(values - np.median(values)))


def lag_one(values):
    return np.corrcoef(values[:-1], values[1:])[0, 1]

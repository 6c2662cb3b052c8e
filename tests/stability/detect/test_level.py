"""Rises of a loss's level: by how much and how slowly, and what is none."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stability.detect.catalogue import make_detector
from stability.detect.events import Rise
from stability.detect.level import AT_LEVEL, FEWEST, IN_A_ROW, KEPT, LENGTHS, RESOLUTION, SETTLED, SIGMAS

from .detected import detect

NOISE = 0.03


def curve(length, seed=0, every=1, noise=NOISE):
    """A loss that falls as a power of the step, with noise, logged every so many steps."""
    steps = every * np.arange(1, length + 1)
    return steps, 2.5 + 4 * (1 + steps / 50) ** -0.5 + noise * np.random.default_rng(seed).standard_normal(length)


def rises(steps, values):
    return detect("loss/nll", steps.tolist(), values.tolist(), "level")


@pytest.mark.parametrize("every", [1, 20, 100])
@pytest.mark.parametrize(("height", "over"), [(2.0, 1), (2.0, 300), (10.0, 60)])
def test_a_rise_that_stays_is_found_once_from_its_onset_on(height, over, every):
    """By twice the noise of a single value, at once or over 300 values, by ten times of it over 60."""
    steps, values = curve(24_000, every=every)
    onset = 12_000
    values[onset:] += height * NOISE * np.minimum(1, np.arange(1, 12_001) / over)
    first, *others = rises(steps, values)
    assert steps[onset] - 1000 * every <= first.start_step <= steps[onset] + 1000 * every
    assert first.start_step < first.opened_step <= steps[onset] + 4000 * every
    assert first.height > 0
    assert first.sigmas > SIGMAS
    assert len(others) <= 1  # one that takes longer than the average that showed it may be noticed again


@pytest.mark.parametrize("seed", range(6))
def test_healthy_curves_are_quiet(seed):
    assert rises(*curve(60_000, seed=seed)) == []


@pytest.mark.parametrize("seed", range(3))
def test_slow_noise_is_no_rise(seed):
    """Autocorrelation makes averages err by more than single values tell: errors are those of averages."""
    steps, values = curve(40_000, seed=seed, noise=0.0)
    random = np.random.default_rng(seed)
    slow = np.zeros(40_000)
    for place, innovation in enumerate(random.standard_normal(40_000)):
        slow[place] = 0.9 * slow[place - 1] + innovation
    assert rises(steps, values + 0.01 * slow) == []


def test_dips_and_the_return_from_them_are_no_rise():
    """The order of the data may bring easy text every 46 steps."""
    steps, values = curve(20_000)
    values[(steps % 46) < 12] -= 10 * NOISE
    assert rises(steps, values) == []


def test_a_spike_is_not_a_rise():
    steps, values = curve(20_000)
    values[9_000:9_040] += 3.0 * np.exp(-np.arange(40) / 10)
    assert rises(steps, values) == []


def test_a_second_rise_on_top_of_the_first_is_found_too():
    steps, values = curve(40_000)
    values[10_000:] += 2 * NOISE
    values[30_000:] += 2 * NOISE
    found = rises(steps, values)
    assert [abs(rise.start_step - onset) < 1000 for rise, onset in zip(found, (10_000, 30_000), strict=True)] == [
        True
    ] * 2


def test_the_rule_is_the_stated_one():
    """Medians of 32, means of four of them, and so on; errors from second differences; against a naive evaluation."""
    steps, values = curve(5000, seed=3)
    values[3000:] += 4 * NOISE
    (found,) = rises(steps, values)
    events = []
    for length, in_a_row in zip(LENGTHS, IN_A_ROW, strict=True):
        averages = []
        for end in range(length, len(values) + 1, length):
            medians = [statistics.median(values[i : i + 32]) for i in range(end - length, end, 32)]
            averages.append(statistics.fmean(medians))
        for now in range(FEWEST + 1, len(averages)):
            error = [(averages[i] - 2 * averages[i - 1] + averages[i - 2]) / math.sqrt(6) for i in range(2, now + 1)][
                -KEPT:
            ]
            smooth = [statistics.median(averages[max(0, i - 2) : i + 1]) for i in range(FEWEST + 1, now + 1)]
            sigma = 1.4826 * statistics.median(map(abs, error)) * (1 + 2 / len(error))
            level = min(smooth[:-1], default=math.inf)
            sigma = max(sigma, RESOLUTION * abs(level))
            height = min(averages[now + 1 - in_a_row : now + 1]) - level
            if smooth[-1] > level and height > SIGMAS * sigma:
                known = range(max(0, now + 1 - KEPT), now + 1)
                last = max(i for i in known if averages[i] <= level + AT_LEVEL * sigma)
                events.append(((now + 1) * length, (last + 1) * length + 1, height, height / sigma))
                break
    opened, onset, height, sigmas = min(events)
    assert (found.opened_step, found.start_step) == (opened, onset)
    assert found.height == pytest.approx(height, rel=1e-12)
    assert found.sigmas == pytest.approx(sigmas, rel=1e-12)


def test_what_is_not_finite_is_passed_over():
    steps, values = curve(8000)
    values[5000:] += 2 * NOISE
    whole = rises(steps, values)
    holes = np.insert(values, [100, 4000, 5100], [math.nan, math.inf, math.nan])
    order = np.insert(2 * steps, [100, 4000, 5100], [201, 8001, 10201])
    (with_holes,) = rises(order, holes)
    assert (with_holes.start_step, with_holes.opened_step) == (2 * whole[0].start_step - 1, 2 * whole[0].opened_step)


@given(st.integers(0, 3000), st.integers(0, 5))
def test_its_state_is_small_and_goes_on_exactly(cut, seed):
    steps, values = curve(3000, seed=seed)
    values[1500:] += 2 * NOISE
    one = make_detector("level", "loss/nll")
    rows = [{"step": int(s), "loss/nll": float(v)} for s, v in zip(steps, values, strict=True)]
    for row in rows[:cut]:
        one.update(row)
    other = type(one).from_state(one.state())
    assert [one.update(row) for row in rows[cut:]] == [other.update(row) for row in rows[cut:]]
    assert one.state() == other.state()
    assert sum(map(len, one.blocks)) <= KEPT * len(LENGTHS)


def test_a_rise_in_a_run_is_an_event_when_it_is_noticed():
    rise = Rise("level", "loss/nll", 60_032, 60_927, 0.0201, 7.04)
    assert str(rise) == "rise of loss/nll: since step 60032, noticed at 60927, +0.0201 (7.0 standard errors)"
    assert rise.event() == {
        "detector": "level", "signal": "loss/nll", "start_step": 60_032, "opened_step": 60_927, "height": 0.0201, "sigmas": 7.04,
    }  # fmt: skip


def test_a_level_that_has_settled_is_the_usual_one():
    """After SETTLED blocks a return to the old level and a new rise from it are found."""
    length = LENGTHS[0]
    steps, values = curve(60_000, noise=0.001)
    values[20_000:] += 0.5
    settled = 20_000 + (SETTLED + 20) * length
    values[settled : settled + 3000] -= 0.5
    found = rises(steps, values)
    assert [
        abs(rise.start_step - onset) < 100 for rise, onset in zip(found, (20_000, settled + 3000), strict=True)
    ] == [True] * 2

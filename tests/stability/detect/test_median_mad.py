"""The default rule: what it finds and leaves alone. And what holds of every detector: no future, no memory but its state."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks.curves import load_curves
from stability.detect.baseline import CLIP, HISTORY, MAD_TO_SIGMA, REFIT, SMALL_SAMPLE, Baseline, median
from stability.detect.catalogue import DETECTORS, detector_from_state, make_detector
from stability.detect.finished_series import detect_batches
from stability.detect.median_mad import ALONE, DECISION, LONGEST, MOST, REFERENCE, MedianMad
from stability.detect.outliers import FEW, HALVED, LEAST, LESS, RARE, SIZES, Outliers
from tests.stability.detect.detected import detect

NOISE = 0.03


def curve(length=600, seed=0, freedom=100):
    """A falling loss with noise of standard deviation NOISE."""
    noise = np.random.default_rng(seed).standard_t(freedom, length) / math.sqrt(freedom / (freedom - 2))
    return 3 + 5 / np.sqrt(1 + np.arange(1, length + 1) / 20) + NOISE * noise


def spikes_in(values, signal="loss/nll"):
    return detect(signal, range(1, len(values) + 1), values)


# ---------------------------------------------------------------------------------------------------- what it finds


@pytest.mark.parametrize("start", [24, 200, 400])
@pytest.mark.parametrize("length", [2, 3, 30])
def test_a_planted_spike_is_one_event_with_its_extent(start, length):
    values = curve()
    values[start : start + length] += 1.0
    (spike,) = spikes_in(values)
    assert (spike.detector, spike.signal) == ("median_mad", "loss/nll")
    assert spike.start_step == start + 1
    assert 0 <= spike.end_step - (start + length) <= 2  # noise just after it may still look like it
    assert spike.start_step <= spike.peak_step <= spike.end_step
    assert spike.height == pytest.approx(1.0, abs=0.25)
    assert spike.recovered


@pytest.mark.parametrize("seed", range(10))
def test_one_outlier_is_no_spike_and_two_as_high_in_a_row_are(seed):
    values = curve(seed=seed)
    values[300] += 6 * NOISE
    assert spikes_in(values) == []
    values[301] += 6 * NOISE
    (spike,) = spikes_in(values)
    assert (spike.start_step, spike.end_step) == (301, 302)


@pytest.mark.parametrize("seed", range(10))
def test_how_far_one_value_must_be_out_depends_on_the_outliers_there_have_been(seed):
    """12 sigmas are a spike in light noise; not where, within the last 256 values, two of 8 have come, in either direction.
    A single one does not hide it."""
    values = curve(seed=seed)
    values[300] += 12 * NOISE
    (spike,) = spikes_in(values)
    assert (spike.start_step, spike.end_step) == (301, 301)
    values[150] -= 8 * NOISE
    assert len(spikes_in(values)) == 1
    values[200] += 7.8 * NOISE
    assert [s for s in spikes_in(values) if s.start_step == 301] == []


def test_a_heavy_tail_learnt_is_held_against_two_outliers_in_a_row():
    """As where hard documents span batches: with 1 value in 50 at 9 to 11 sigmas, two in a row are no spike, seven are."""
    random = np.random.default_rng(0)
    values = curve(6000)
    values[random.choice(5000, 100, replace=False)] += NOISE * random.uniform(9, 11, 100)
    healthy = spikes_in(values)
    values[5500:5502] += 9 * NOISE
    assert spikes_in(values) == healthy
    values[5700:5707] += 9 * NOISE
    assert [spike.start_step for spike in spikes_in(values)[len(healthy) :]] == [5701]


@pytest.mark.parametrize("seed", range(8))
def test_outliers_are_counted_as_stated(seed):
    """Half forgotten every HALVED values, the share against what is counted, the farthest within REMEMBERED."""
    random = np.random.default_rng(seed)
    outliers, counts, taken = Outliers(), np.zeros(len(SIZES)), []
    for place in range(1, 9001):
        outliers.pass_over(1)
        if place % HALVED == 0:
            counts /= 2
        if random.random() < 0.02:
            sigmas = float(random.uniform(1, 25))
            outliers.remember(sigmas, 0.1 * sigmas)
            counts += sigmas >= np.array(SIZES)
            taken += [0.1 * sigmas] if sigmas >= SIZES[0] else []
    for sigmas in (2.0, 3.0, 4.5, 7.0, 30.0):
        size = np.searchsorted(SIZES, sigmas, side="right") - 1
        share = 0 if size < 0 else (counts[size] - FEW) / (HALVED + 9000 % HALVED)
        less = LESS * math.log10(share / RARE) if share > RARE else 0.0
        assert outliers.most_evidence(sigmas, MOST) == pytest.approx(max(LEAST, MOST - less))
    assert outliers.farthest_but_one(np.zeros(2)) == pytest.approx(sorted(taken)[-2])


def test_a_very_high_single_value_is_a_spike():
    values = curve()
    values[300] += 2 * ALONE * NOISE
    (spike,) = spikes_in(values)
    assert (spike.start_step, spike.end_step, spike.recovered) == (301, 301, True)
    assert spike.sigmas > ALONE


def test_a_burst_is_one_event_for_each_of_its_spikes():
    values = curve()
    starts = (300, 308, 316)
    for start in starts:
        values[start : start + 3] += 0.8
    found = spikes_in(values)
    assert [(s.start_step, s.end_step, s.recovered) for s in found] == [(s + 1, s + 3, True) for s in starts]


def test_one_value_back_at_the_level_does_not_end_a_spike():
    values = curve()
    values[300:310] += 1.0
    values[305] -= 1.0
    (spike,) = spikes_in(values)
    assert (spike.start_step, spike.end_step) == (301, 310)


def test_a_level_that_stays_is_not_recovered_and_becomes_the_new_normal():
    values = curve(1200)
    values[300:] += 2.0
    values[1000:1003] += 1.0
    stayed, later = spikes_in(values)
    assert (stayed.start_step, stayed.recovered) == (301, False)
    assert stayed.end_step == stayed.peak_step + LONGEST
    assert (later.start_step, later.end_step, later.recovered) == (1001, 1003, True)


@pytest.mark.parametrize("signal", ["loss/nll", "grad_norm/total"])
def test_a_gradual_spike_is_found(signal):
    """By 8 noises over 25 steps, and back over 25: the expected level does not rise with it."""
    found = 0
    for seed in range(20):
        values = curve(seed=seed)
        values[300:325] += np.linspace(0, 8 * NOISE, 25)
        values[325:350] += np.linspace(8 * NOISE, 0, 25)
        judged = np.exp(values) if signal == "grad_norm/total" else values
        found += any(300 < spike.start_step < 326 for spike in spikes_in(judged, signal))
    assert found >= 19


@pytest.mark.parametrize("height", [3.0, 3.5])
def test_a_low_spike_over_tens_of_values_is_found(height):
    """No value of it stands out: slow evidence."""
    found = 0
    for seed in range(20):
        values = curve(seed=seed)
        values[300:320] += height * NOISE
        spikes = [spike for spike in spikes_in(values) if 290 < spike.start_step < 321]
        found += bool(spikes)
        assert all(spike.start_step <= spike.opened_step <= spike.end_step for spike in spikes)
    assert found >= 17


@pytest.mark.parametrize("seed", range(4))
def test_the_return_from_a_dip_is_no_spike(seed):
    """As where the order of the data makes the loss dip every 46 steps."""
    values = curve(3000, seed=seed)
    for start in range(200, 2950, 46):
        values[start : start + 18] -= 8 * NOISE * np.sin(np.linspace(0, math.pi, 18))
    assert [spike for spike in spikes_in(values) if spike.start_step > 350] == []


@pytest.mark.parametrize("seed", range(4))
def test_a_norm_of_twice_the_usual_is_found_whatever_is_beside_it(seed):
    """One value 17 times the usual hides neither another nor one of three times."""
    values = np.exp(0.1 * np.random.default_rng(seed).standard_normal(600))
    values[[300, 340, 380]] = 17.0, 17.0, 3.0
    assert [spike.start_step for spike in spikes_in(values, "grad_norm/total")] == [301, 341, 381]


def test_a_spike_says_when_it_began_and_when_that_was_known():
    values = curve()
    values[300:304] += 3.5 * NOISE, 3.5 * NOISE, 12 * NOISE, 4 * NOISE
    (spike,) = spikes_in(values)
    assert (spike.start_step, spike.opened_step, spike.peak_step, spike.end_step) == (301, 303, 303, 304)


@pytest.mark.parametrize("seed", range(4))
def test_rounding_to_few_digits_is_no_spike(seed):
    """A gradient norm near 0.25 that is printed as 0.25 or 0.26."""
    random = np.random.default_rng(seed)
    norms = np.round(0.25 * np.exp(0.03 * random.standard_normal(3000)), 2)
    assert len(detect("grad_norm/total", range(1, 3001), norms)) <= 1
    norms[2000:2003] = 0.75
    (spike,) = [s for s in detect("grad_norm/total", range(1, 3001), norms) if s.start_step == 2001]
    assert spike.end_step == 2003


def test_a_spike_at_the_end_is_reported_as_not_recovered():
    values = curve()
    values[-2:] += 1.0
    (spike,) = spikes_in(values)
    assert (spike.start_step, spike.end_step, spike.recovered) == (599, 600, False)


# ------------------------------------------------------------------------------------------------ what it leaves alone


def test_healthy_curves_with_heavy_tails_are_quiet():
    """Two heavy tails in a row do occur, and one three times as far out as 256 others: at most two events in 9,000 values."""
    assert sum(len(spikes_in(curve(seed=seed, freedom=4))) for seed in range(15)) <= 2


def test_healthy_runs_of_this_project_are_quiet():
    """Losses without exception. Of the gradient norms the two of a cold start rise thirty-fold, and one has a fourfold rise."""
    found = {(run, signal): spikes_in(values, signal) for (run, signal), values in load_curves().items()}
    noisy = {key for key, spikes in found.items() if spikes}
    doubled = "linear_lr_double"  # at step 263, by 11 sigmas
    assert noisy <= {(run, "grad_norm/total") for run in ("tfsd_article", "ce_article", "tfsd_1_2", doubled)}
    assert [spike.start_step for spike in found[doubled, "grad_norm/total"]] == [263]
    assert len(found["tfsd_1_2", "grad_norm/total"]) <= 1


@pytest.mark.parametrize("drop", [0.3, 1.5])
@pytest.mark.parametrize("length", [10, 300])
def test_a_drop_and_its_end_before_a_new_level_is_learnt_are_no_spike(drop, length):
    values = curve()
    values[300 : 300 + min(length, 300)] -= drop
    assert all(spike.start_step > 305 for spike in spikes_in(values))
    if length == 300:
        assert spikes_in(values) == []


def test_a_curve_that_stops_falling_is_no_spike():
    noise = 0.02 * np.random.default_rng(0).standard_normal(200)
    values = np.maximum(8 - 0.05 * np.arange(200), 5.0) + noise
    assert spikes_in(values) == []


def test_a_signal_without_noise_does_not_spike_at_its_last_digits():
    values = np.full(100, 2.0)
    values[60:70] += 1e-6
    assert spikes_in(values) == []
    assert spikes_in(np.zeros(100)) == []


def test_norms_are_judged_by_their_logarithm():
    values = np.exp(0.1 * np.random.default_rng(0).standard_normal(400))
    values[200] *= 1.8  # 6 sigmas of the logarithm
    assert spikes_in(values, "grad_norm/total") == []
    values[300:303] *= 3.0
    (spike,) = spikes_in(values, "grad_norm/total")
    assert (spike.start_step, spike.end_step) == (301, 303)
    assert spike.height == pytest.approx(2.0, abs=0.8)  # in the unit of the norm


def test_a_norm_may_rise_slowly():
    values = np.exp(np.linspace(0, 2, 600) + 0.1 * np.random.default_rng(0).standard_normal(600))
    assert spikes_in(values, "grad_norm/total") == []


@given(st.lists(st.integers(0, 599), max_size=40), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_a_value_that_is_not_finite_is_as_good_as_none(where, value):
    values = curve()
    values[300:305] += 1.0
    detector = MedianMad("loss/nll")
    rows = [{"step": i + 1} | ({} if i in where else {"loss/nll": v}) for i, v in enumerate(values)]
    without = [event for row in rows for event in detector.update(row)] + detector.finish()
    values[where] = value
    assert spikes_in(values) == without


# -------------------------------------------------------------------------------------------------- the stated numbers


@given(st.integers(0, 1000))
def test_the_expected_level_and_noise_are_the_stated_ones(seed):
    """Theil-Sen over log(1 + step) as scipy has it, and errors clipped at 3 MAD sigmas by the definition."""
    values = curve(40, seed=seed)
    baseline, errors = Baseline(), []
    for i, value in enumerate(values):
        if i >= 8:
            time = np.log1p(np.arange(1, i + 1))[-32:]
            slope, intercept = scipy.stats.theilslopes(values[:i][-32:], time, method="joint")[:2]
            errors.append(value - (intercept + slope * math.log1p(i + 1)))
        baseline.accept(i + 1, value)
    recent = np.array(errors[-16:])
    deviations = recent - np.median(recent)
    clip = CLIP * MAD_TO_SIGMA * np.median(np.abs(deviations))
    sigma = math.sqrt(np.mean(np.clip(deviations, -clip, clip) ** 2)) * (1 + SMALL_SAMPLE / 16)
    slope, intercept = scipy.stats.theilslopes(values[-32:], np.log1p(np.arange(1, 41))[-32:], method="joint")[:2]
    level = max(intercept + slope * math.log1p(41) + np.median(recent), values[-4:].min())
    assert baseline.expected(41) == pytest.approx((level, sigma), rel=1e-9)


@pytest.mark.parametrize("falling", [True, False])
@pytest.mark.parametrize("length", [64, 100, 401])
def test_the_level_is_not_below_the_median_of_the_history(length, falling):
    """Carried on by the slope between the medians of its halves; after 256 errors, as of every 4th value."""
    values = curve(length, seed=length)
    values[-30:] -= 5 * NOISE  # a dip: once there are 128 values, the line is below their median
    baseline = Baseline(falling)
    for i, value in enumerate(values):
        baseline.accept(i + 1, value)
    fitted = length if length < 264 else length - length % REFIT
    recent, time = values[:fitted][-HISTORY:], np.log1p(np.arange(1, fitted + 1))[-HISTORY:]
    half = len(recent) // 2
    slope = (np.median(recent[half:]) - np.median(recent[:half])) / (np.median(time[half:]) - np.median(time[:half]))
    slope = min(slope, 0) if falling else slope
    usual = np.median(recent - slope * time) + slope * math.log1p(length + 1)
    intercept, rise = baseline.usual
    assert intercept + rise * math.log1p(length + 1) == pytest.approx(usual, rel=1e-12)
    assert baseline.expected(length + 1)[0] >= usual * (1 - 1e-12)
    assert length < 401 or baseline.expected(length + 1)[0] == pytest.approx(usual, rel=1e-12)


@given(st.integers(0, 1000))
def test_the_decision_is_the_stated_one(seed):
    """Two equal values in a row open a spike just when they lie REFERENCE + DECISION/2 sigmas above the level expected."""
    values = curve(100, seed=seed)
    fed = MedianMad("grad")  # neither a norm nor a loss
    for i, value in enumerate(values):
        fed.update({"step": i + 1, "grad": value})
    assume(not fed.held and not fed.open)
    for factor, opens in ((1 + 1e-6, True), (1 - 1e-6, False)):
        detector = detector_from_state(fed.state())
        for step in (detector.last_step + 1, detector.last_step + 2):
            level, sigma = detector.baseline.expected(step)
            detector.update({"step": step, "grad": level + factor * (REFERENCE + DECISION / 2) * sigma})
        assert (detector.open is not None) == opens


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_the_median_is_numpys(values):
    assert median(np.array(values)) == pytest.approx(float(np.median(values)), rel=1e-15, abs=1e-300)


# ----------------------------------------------------------------------------------------------------- every detector


def eventful(seed):
    """Rows with spikes, a plateau, NaN, gaps, and logits that grow while the loss stands still."""
    random = np.random.default_rng(seed)
    values = np.abs(curve(700, seed=seed, freedom=4))
    for start in random.integers(20, 600, 6):
        values[start : start + random.integers(1, 40)] *= random.uniform(1.1, 3)
    values[random.integers(0, 700, 5)] = math.nan
    values[500:504] = math.inf
    values[650:653] *= 20
    logits = np.exp(np.linspace(0, 5, 700))
    rows = [
        {"step": 3 * i + 1, "loss/nll": float(v), "logit/max": float(z)}
        for i, (v, z) in enumerate(zip(values, logits, strict=True))
    ]
    for i in random.integers(0, 700, 20):
        rows[i].pop("loss/nll", None)
    return rows


@pytest.mark.parametrize("name", DETECTORS)
@settings(max_examples=12)
@given(cut=st.integers(0, 700), seed=st.integers(0, 5))
def test_a_restored_detector_goes_on_exactly(name, cut, seed):
    rows = eventful(seed)
    one = make_detector(name, "loss/nll")
    found = [one.update(row) for row in rows[:cut]]
    state = json.loads(json.dumps(one.state(), allow_nan=False))
    other = detector_from_state(state)
    assert other.state() == state
    assert [one.update(row) for row in rows[cut:]] == [other.update(row) for row in rows[cut:]]
    assert one.state() == other.state()
    assert one.finish() == other.finish()
    assert detector_from_state(state).state() == state  # what was restored shares nothing with the state
    whole = make_detector(name, "loss/nll")
    assert [whole.update(row) for row in rows[:cut]] == found


@pytest.mark.parametrize("name", DETECTORS)
@settings(max_examples=12)
@given(cut=st.integers(1, 699), seed=st.integers(0, 5))
def test_what_is_said_of_a_step_depends_on_no_later_one(name, cut, seed):
    rows = eventful(seed)
    whole, other = make_detector(name, "loss/nll"), make_detector(name, "loss/nll")
    changed = rows[:cut] + [row | {"loss/nll": 100.0 * row["step"]} for row in rows[cut:]]
    said = [(whole.update(row), whole.open and whole.open.event()) for row in rows]
    others = [(other.update(row), other.open and other.open.event()) for row in changed]
    assert said[:cut] == others[:cut]


@pytest.mark.parametrize("name", [name for name in DETECTORS if name not in ("stall", "saturated")])
def test_the_array_is_judged_as_the_stream(name):
    rows = [row for row in eventful(1) if "loss/nll" in row]
    detector = make_detector(name, "loss/nll")
    streamed = [event for row in rows for event in detector.update(row)] + detector.finish()
    assert streamed or name == "level"  # the rows are eventful enough for every rule but that for slow rises
    assert detect("loss/nll", [row["step"] for row in rows], [row["loss/nll"] for row in rows], name) == streamed


def long_curve(kind, seed, length):
    """A series of several batches: what a batch passes over, and what it has to leave to the stream."""
    random = np.random.default_rng(seed)
    values = curve(length, seed=seed, freedom=3 if kind == "heavy tails" else 100)
    if kind == "random":
        values = random.uniform(0, 1, length)
    elif kind == "constant":
        values = np.full(length, 2.0)
        values[random.integers(0, length, 3)] = 2.1
    elif kind == "steps":
        values = np.repeat(random.integers(-3, 4, length), 5)[:length].astype(float)
    elif kind == "spiky":
        for start in random.integers(0, length, length // 60):
            values[start : start + random.integers(1, 12)] += random.uniform(0.1, 2)
    elif kind == "creep":
        values[length // 2 :] += np.linspace(0, random.uniform(0.2, 5), length - length // 2)
    elif kind == "level":
        values[length // 3 :] += 1
    elif kind == "not finite":
        values[random.integers(0, length, length // 5)] = random.choice([math.nan, math.inf, -math.inf], length // 5)
    elif kind == "huge":
        values = random.choice([3e38, -3e38, 1e-45, 0.0, -0.0, 3.0], length)
    return values


@pytest.mark.parametrize("signal", ["loss/nll", "grad_norm/total", "entropy/p"])
@pytest.mark.parametrize(
    "kind",
    ["plain", "random", "heavy tails", "constant", "steps", "spiky", "creep", "level", "not finite", "huge"],
)
@settings(max_examples=3)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 700), max_size=2))
def test_batches_find_and_keep_what_the_stream_does_to_the_bit(kind, signal, seed, cuts):
    values = long_curve(kind, seed, 700)
    steps = np.cumsum(np.random.default_rng(seed).integers(1, 4, len(values)))
    one, other = MedianMad(signal), MedianMad(signal)
    for begin, end in pairwise([0, *sorted(cuts), len(values)]):
        found = detect_batches(one, steps[begin:end], values[begin:end])
        rows = zip(steps[begin:end].tolist(), values[begin:end].tolist(), strict=True)
        assert found == [event for step, value in rows for event in other.update({"step": step, signal: value})]
        assert json.dumps(one.state()) == json.dumps(other.state())
    assert one.finish() == other.finish()


def test_batches_are_of_rows_in_order():
    detector = MedianMad("x")
    with pytest.raises(ValueError, match="step 2 after step 2"):
        detect_batches(detector, np.array([1, 2, 2]), np.zeros(3))
    detect_batches(detector, np.array([1, 2]), np.zeros(2))
    with pytest.raises(ValueError, match="step 2 after step 2"):
        detect_batches(detector, np.array([2, 3]), np.zeros(2))


@pytest.mark.parametrize("signal", ["loss/nll", "grad_norm/total"])
@pytest.mark.parametrize("name", DETECTORS)
@settings(max_examples=25)
@given(st.lists(st.floats(width=32), min_size=20, max_size=60))
def test_any_values_leave_a_strict_state(name, signal, values):
    detector = make_detector(name, signal)
    found = detect(signal, range(len(values)), values, name)
    for step, value in enumerate(values):
        detector.update({"step": step, signal: value})
    json.dumps([detector.state(), *(event.event() for event in found)], allow_nan=False)


@pytest.mark.parametrize("name", DETECTORS)
def test_rows_must_come_in_order(name):
    detector = make_detector(name, "x")
    detector.update({"step": 5, "x": 1.0})
    with pytest.raises(ValueError, match="step 5 after step 5"):
        detector.update({"step": 5, "x": 1.0})

import pytest

from benchmarks.reproduce.a16_repeated_ngrams import LENGTH, PLANTED, STRESS, judged, near
from benchmarks.reproduce.base import Verdict

ALL, HALF = list(PLANTED), list(PLANTED)[:4]


def made(planted, filtered, small_eps):
    return judged(
        [{"planted": p, "filtered": f, "small_eps": s} for p, f, s in zip(planted, filtered, small_eps, strict=True)]
    )


def test_a_spike_must_begin_at_the_batch_or_within_two_steps():
    assert near([10, 23, 31, 44], planted=(10, 20, 30, 42)) == [10, 30, 42]


def test_every_span_is_repeated_32_times_or_more_and_fits():
    assert [fault["period"] for fault in STRESS] == [1, 2, 3, 4, 6, 8, 10, 13]
    assert all(fault["repeats"] >= 32 and fault["period"] * fault["repeats"] <= LENGTH + 1 for fault in STRESS)


def test_planted_batches_that_spike_less_with_a_small_epsilon_are_reproduced():
    outcome = made([ALL, ALL, ALL[:7]], [[], [], [ALL[0]]], [HALF, HALF[:3], HALF])
    assert outcome.verdict is Verdict.REPRODUCED
    assert outcome.table[0]["lengths of their spans, by seed"].endswith("1, 2, 3, 4, 6, 8, 10")


def test_a_small_epsilon_that_does_not_help_is_not_reproduced():
    assert made([ALL, ALL, ALL[:7]], [[], [], []], [ALL, ALL[:7], ALL]).verdict is Verdict.NOT_REPRODUCED


@pytest.mark.parametrize("filtered", [[HALF, HALF[:2], ALL], [HALF, HALF, HALF]])
def test_planted_batches_that_spike_no_more_than_others_are_not_at_this_scale(filtered):
    assert made([HALF, HALF, HALF], filtered, [[], [], []]).verdict is Verdict.NOT_AT_THIS_SCALE

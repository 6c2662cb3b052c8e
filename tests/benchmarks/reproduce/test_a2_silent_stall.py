import math
from dataclasses import replace

import pytest

from benchmarks.reproduce.a2_silent_stall import Stalled, judged, uniform_entropy
from benchmarks.reproduce.base import Verdict

SILENT = Stalled(behind=0.6, entropy=0.1, loss_spikes=0, alarms=["saturated", "stall"])


def made(**changes):
    return judged([replace(SILENT, **changes), replace(SILENT, behind=0.62), replace(SILENT, behind=0.55)])


def test_uniform_attention_has_log_t_at_position_t():
    assert uniform_entropy(3) == pytest.approx((math.log(1) + math.log(2) + math.log(3)) / 3)


def test_a_silent_stall_is_reproduced():
    outcome = made()
    assert outcome.verdict is Verdict.REPRODUCED
    assert [row["fired"] for row in outcome.table] == ["saturated, stall"] * 3


@pytest.mark.parametrize("change", [{"loss_spikes": 1}, {"entropy": 0.6}, {"alarms": []}])
def test_one_seed_that_spikes_or_is_not_noticed_is_enough_against_it(change):
    assert made(**change).verdict is Verdict.NOT_REPRODUCED


@pytest.mark.parametrize("behind", [0.1, -3.0])
def test_a_run_that_is_not_behind_says_nothing(behind):
    found = [replace(SILENT, behind=behind + 0.01 * seed) for seed in range(3)]
    assert judged(found).verdict is Verdict.NOT_AT_THIS_SCALE

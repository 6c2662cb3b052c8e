import numpy as np
import pytest

from benchmarks.reproduce.a1_qk_norm import RATES, QkNorm, judged, sensitivity, turning_rate
from benchmarks.reproduce.base import Verdict

U_SHAPED, FLAT = [4.5, 5.0, 5.6, 5.9, 6.0], [4.5, 4.5, 4.6, 4.7, 4.8]
LOW, HIGH = [5.0, 6.0, 9.0, 20.0, 30.0], [20.0, 60.0, 400.0, 3000.0, 9000.0]


def seeds(curve, n=3):
    return [[loss + 0.01 * seed * i for i, loss in enumerate(curve)] for seed in range(n)]


def made(plain=U_SHAPED, qk_norm=FLAT, logits=HIGH, logits_qk=LOW):
    return judged(
        {"plain": seeds(plain), "qk_norm": seeds(qk_norm)}, {"plain": [logits] * 3, "qk_norm": [logits_qk] * 3}
    )


def test_sensitivity_is_the_mean_less_the_lowest():
    assert sensitivity([4.0, 3.0, 5.0]) == 1.0


def test_the_curve_turns_up_between_two_rates_on_a_log_scale():
    assert turning_rate([3.0, 3.0, 4.0], (0.01, 0.1, 1.0)) == pytest.approx(
        np.sqrt(0.1)
    )  # half a nat: half of the decade
    assert turning_rate([3.0, 3.5, 4.0], (0.01, 0.1, 1.0)) == pytest.approx(0.1)
    assert turning_rate([9.0, 3.0, 3.4], (0.01, 0.1, 1.0)) is None  # below the best rate nothing counts


def test_a_curve_that_turns_up_a_decade_later_is_reproduced():
    outcome = made()
    assert outcome.verdict is Verdict.REPRODUCED
    assert "more than 0.3" in outcome.told and len(outcome.table) == 2 * len(RATES)


@pytest.mark.parametrize(
    "change",
    [
        {"qk_norm": U_SHAPED},  # the same curve
        {"qk_norm": [4.5, 4.7, 5.05, 5.2, 5.2]},  # less sensitive, but it turns up before a decade
        {"logits_qk": [5.0, 6.0, 9.0, 20.0, 300.0]},  # attention logits grow with QK-norm too
        {"plain": FLAT},  # nothing turns up
    ],
)
def test_what_must_not_be_reproduced(change):
    assert made(**change).verdict is Verdict.NOT_REPRODUCED


def test_logits_that_do_not_grow_leave_nothing_to_prevent():
    assert made(logits=[5.0, 6.0, 50.0, 80.0, 90.0]).verdict is Verdict.NOT_AT_THIS_SCALE


def test_both_bodies_run_at_all_rates():
    assert len(QkNorm().runs()) == 2 * len(RATES)

import pytest

from benchmarks.reproduce.a5_lr_sensitivity import RATES, judged, overrides
from benchmarks.reproduce.base import Verdict

STEEP, FLATTER, FLAT = [5.0, 5.3, 5.9], [5.0, 5.2, 5.5], [5.0, 5.1, 5.1]


def made(no_warmup=STEEP, warmup=FLATTER, independent=FLAT, wobble=0.01):
    def seeds(curve, wobble):
        return [[*curve[:2], curve[2] + wobble * seed] for seed in range(3)]

    arms = {"no_warmup": seeds(no_warmup, 0.0), "warmup": seeds(warmup, wobble)}
    return judged(arms | {"independent_decay": seeds(independent, 2 * wobble)})


def test_flatter_curves_are_reproduced():
    outcome = made()
    assert outcome.verdict is Verdict.REPRODUCED
    assert [row["arm"] for row in outcome.table] == ["no_warmup", "warmup", "independent_decay"]


@pytest.mark.parametrize("change", [{"warmup": STEEP}, {"independent": STEEP}, {"wobble": 0.5}])
def test_one_that_does_not_help_or_is_not_shown_to_is_not_reproduced(change):
    assert made(**change).verdict is Verdict.NOT_REPRODUCED


def test_independent_decay_takes_the_same_share_at_every_rate():
    for rate in RATES:
        (decay,) = (each for each in overrides("independent_decay", rate) if "weight_decay" in each)
        assert float(decay.partition("=")[2]) * rate == pytest.approx(1e-4)

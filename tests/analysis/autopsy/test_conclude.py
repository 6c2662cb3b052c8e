"""What is concluded from what the experiments made of a spike."""

import math

import pytest
import torch

from analysis.autopsy.conclude import Evidence, Level, conclude, level_of, removed
from analysis.autopsy.experiments import (
    AS_BEFORE,
    ATTENTION,
    CONTROL,
    DATA,
    HARDWARE,
    HELD,
    HIGHER_BETA2,
    NUMERICS,
    OTHERS,
    OUTPUT,
    RATE,
    STATE,
    UNDECIDED,
    WITHOUT,
    Window,
    experiments,
    move_at_random,
)
from configs.load import load_config

NOTHING = {
    WITHOUT: (DATA, 0.0),
    OTHERS: (DATA, 0.0),
    HELD: ("", 1.0),
    HIGHER_BETA2: ("", 0.0),
    CONTROL: ("", 0.0),
    "half the rate": (RATE, 0.1),
    "moments forgotten": (STATE, -0.2),
    "lower beta2": (STATE, 0.0),
    "QK-clip": (ATTENTION, 0.0),
    "z-loss": (OUTPUT, 0.1),
    "in fp32": (NUMERICS, 0.0),
}


NAMES = {
    "QK_clip": "QK-clip",
    "z_loss": "z-loss",
    "control": CONTROL,
    "others": OTHERS,
    "held": HELD,
    "higher": HIGHER_BETA2,
}


def cause(
    again=0.0,
    comparable=True,
    batch_sigmas=0.0,
    logit_sigmas=0.0,
    sign_like=0.0,
    usual=0.0,
    differs=None,
    agreed=20,
    **shares,
):
    if "without_its_batches" in shares:
        shares = {"others": shares["without_its_batches"]} | shares
    changed = {NAMES.get(name, name.replace("_", " ")): share for name, share in shares.items()}
    table = NOTHING | {name: (NOTHING.get(name, (RATE, 0))[0], share) for name, share in changed.items()}
    differs = differs or (50 if again else None)
    evidence = Evidence(differs, agreed, comparable, again, table, batch_sigmas, logit_sigmas, sign_like, usual)
    return conclude(evidence).cause


@pytest.mark.parametrize(
    ("expected", "evidence"),
    [
        (UNDECIDED, {}),
        (HARDWARE, {"again": 1.0}),
        (UNDECIDED, {"again": 1.0, "comparable": False}),
        (DATA, {"without_its_batches": 1.0, "batch_sigmas": 20.0}),
        (DATA, {"without_its_batches": 1.0}),
        (DATA, {"without_its_batches": 1.0, "half_the_rate": 0.9, "batch_sigmas": 20.0}),
        (UNDECIDED, {"without_its_batches": 1.0, "half_the_rate": 0.9}),
        (DATA, {"without_its_batches": 0.6, "others": 0.8, "held": 0.2}),
        (UNDECIDED, {"without_its_batches": 0.6, "others": 0.8, "held": 0.6}),
        (UNDECIDED, {"without_its_batches": 0.4, "others": 0.8, "held": 0.2}),
        (RATE, {"half_the_rate": 0.9}),
        (RATE, {"the_rate_as_before": 0.9}),
        (RATE, {"the_rate_as_before": 0.9, "moments_forgotten": 0.9, "without_its_batches": 0.8}),
        (STATE, {"moments_forgotten": 0.9}),
        (STATE, {"half_the_rate": 0.9, "sign_like": 0.9}),
        (RATE, {"the_rate_as_before": 0.9, "half_the_rate": 0.9, "sign_like": 0.9}),
        (RATE, {"half_the_rate": 0.9, "sign_like": 0.6, "usual": 0.5}),
        (UNDECIDED, {"again": 1.0, "differs": 41, "agreed": 0}),
        (HARDWARE, {"again": 1.0, "differs": 48, "agreed": 7}),
        (UNDECIDED, {"without_its_batches": 1.0, "others": 0.2}),
        (UNDECIDED, {"without_its_batches": 1.0, "others": 0.2, "batch_sigmas": 20.0}),
        (UNDECIDED, {"without_its_batches": 1.0, "control": 0.9}),
        (DATA, {"without_its_batches": 1.0, "control": 0.9, "batch_sigmas": 20.0}),
        (UNDECIDED, {"half_the_rate": 0.9, "control": 0.9}),
        (UNDECIDED, {"the_rate_as_before": 0.9, "control": 0.9}),
        (UNDECIDED, {"sign_like": 0.9, "control": 0.9}),
        (ATTENTION, {"sign_like": 0.9, "QK_clip": 0.9}),
        (UNDECIDED, {"without_its_batches": 0.6, "others": 0.8, "held": 0.2, "half_the_rate": 0.8, "QK_clip": 0.8}),
        (UNDECIDED, {"half_the_rate": 0.9, "differs": 52}),
        (DATA, {"without_its_batches": 1.0, "batch_sigmas": 9.0, "sign_like": 0.9}),
        (STATE, {"moments_forgotten": 0.9, "half_the_rate": 0.8, "lower_beta2": 0.8}),
        (UNDECIDED, {"moments_forgotten": 0.9, "half_the_rate": 0.8}),
        (UNDECIDED, {"moments_forgotten": 0.9, "half_the_rate": 0.8, "lower_beta2": 0.8, "higher": 0.9}),
        (ATTENTION, {"QK_clip": 0.9}),
        (UNDECIDED, {"QK_clip": 0.9, "half_the_rate": 0.8}),
        (UNDECIDED, {"z_loss": 0.9, "half_the_rate": 0.8, "logit_sigmas": 9.0}),
        (UNDECIDED, {"z_loss": 0.9}),
        (OUTPUT, {"z_loss": 0.9, "logit_sigmas": 9.0}),
        (NUMERICS, {"in_fp32": 0.9}),
        (UNDECIDED, {"in_fp32": 0.9, "without_its_batches": 0.9, "half_the_rate": 0.9}),
    ],
)
def test_a_cause_is_named_only_where_one_change_speaks_for_it(expected, evidence):
    assert cause(**evidence) == expected


def test_a_change_that_does_not_count_is_named():
    evidence = Evidence(None, 20, True, 0.0, NOTHING | {"z-loss": (OUTPUT, 1.0)}, 0.0, 0.8, 0.0, 0.0)
    assert "z-loss removes it, but the logits were of their usual size" in conclude(evidence).reasons[0]


def test_how_much_of_a_spike_is_gone():
    level = level_of([1.0, 1.1, 0.9, 1.0, 1.05, 0.95, math.nan])
    assert level.median == 1.0 and level.sigma == pytest.approx(1.4826 * 0.05)
    noiseless = Level(1.0, 0.0, 10.0)
    spiked = noiseless.excess([1.0, 3.0, 2.0])
    assert spiked == pytest.approx(3.0)
    assert removed(spiked, noiseless.excess([1.0, 1.5, 1.0])) == pytest.approx(1 - 0.5 / 3)
    assert removed(spiked, noiseless.excess([1.0, 9.0, 1.0])) < -1
    assert removed(spiked, noiseless.excess([1.0, math.inf])) == -2.0
    huge, smaller = (noiseless.excess([1.0, x, x]) for x in (1e10, 1e9))
    assert removed(huge, smaller) == 0, "beyond the ceiling nothing is gone"
    assert removed(noiseless.excess([math.nan]), noiseless.excess([1e9])) == 0


def test_a_rate_that_rises_in_a_warmup_has_not_jumped(workspace):
    config = load_config(workspace / "tiny.yaml")
    warmup = {step: 1e-3 * step / 100 for step in range(20, 32)}

    def tried(rates, before):
        window = Window(20, 24, 25, 31, (20, 31), rates, before, None)
        return {e.name: e.rate_factors for e in experiments(config, window)}

    assert AS_BEFORE not in tried(warmup, 1e-3 * 19 / 100)
    pulse = {step: rate * (10 if step == 24 else 1) for step, rate in warmup.items()}
    factors = tried(pulse, 1e-3 * 19 / 100)[AS_BEFORE]
    assert [round(factors[step] * pulse[step], 12) for step in (23, 24, 25)] == [1.9e-4] * 3


def test_weights_are_moved_by_the_length_that_was_asked_for():
    parameters = [torch.zeros(30, 20, requires_grad=True), torch.ones(50, requires_grad=True)]
    before = [p.detach().clone() for p in parameters]
    move_at_random(torch.optim.AdamW(parameters), 0.25)
    moves = [(p.detach() - b).double() for p, b in zip(parameters, before, strict=True)]
    assert sum(float(m.square().sum()) for m in moves) ** 0.5 == pytest.approx(0.25, rel=1e-5)
    assert all(float(m.square().sum()) > 0 for m in moves)

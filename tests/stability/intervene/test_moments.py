"""Remedies that act on Adam's moments, on updates and on the rate: definitions in float64, hand cases, what is not finite."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError

from .steps import made, parameters, seen, updated


def adam(both, **settings):
    return torch.optim.AdamW(both, lr=0.1, fused=True, **settings)


def test_spam_is_what_it_is_defined_as():
    """Beside an AdamW of its own in float64, element by element."""
    both, spam = parameters((3, 4), (5,)), made("spam", threshold=4.0, every=12, pause=3, warmup=4)
    optimizer = adam(both, betas=(0.9, 0.95), weight_decay=0.0, eps=1e-6)
    spam.attach(None, optimizer)
    p, m, v = (
        [t.detach().double().numpy().copy() if t is both[i] else np.zeros(both[i].shape) for i, t in enumerate(each)]
        for each in (both, [None] * 2, [None] * 2)
    )
    clipped = []
    for step in range(1, 31):
        generator = torch.Generator().manual_seed(step)
        count = 0
        for i, parameter in enumerate(both):
            g = torch.randn(parameter.shape, generator=generator) * (100.0 if step % 5 == 0 else 1.0)
            parameter.grad, g = g.clone(), g.double().numpy()
            if step % 12 == 0:
                m[i][...], v[i][...] = 0, 0
            if step % 12 >= 3:
                for at in np.ndindex(g.shape):
                    if v[i][at] > 0 and g[at] ** 2 > 4 * v[i][at]:
                        g[at], count = math.copysign(math.sqrt(4 * v[i][at]), g[at]), count + 1
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.95 * v[i] + 0.05 * g**2
            rate = 0.1 * spam.rate(step)
            p[i] -= rate * m[i] / (1 - 0.9**step) / (np.sqrt(v[i] / (1 - 0.95**step)) + 1e-6)
        optimizer.param_groups[0]["lr"] = 0.1 * spam.rate(step)
        said = spam.on_tensors(seen(step, both))
        clipped.append(float(said["clipped_share"]))
        assert clipped[-1] == pytest.approx(count / 17)
        optimizer.step()
        for parameter, expected in zip(both, p, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    assert max(clipped) > 0.9
    assert clipped[11:14] == [0.0] * 3


def test_spam_the_rate_rises_after_each_reset_but_not_at_the_start():
    rate = made("spam").rate
    assert [rate(step) for step in (1, 499, 650, 999)] == [1.0] * 4
    for reset in (500, 1000):
        assert rate(reset) == pytest.approx(0.01)
        assert rate(reset + 75) == pytest.approx(1 - 0.99 * (1 + math.cos(math.pi * 75 / 151)) / 2)
        assert 0.999 < rate(reset + 149) < 1 == rate(reset + 150)
    assert made("spam", every=None).rate(500) == 1.0


def test_spam_by_hand_the_first_update_after_a_reset():
    (parameter,), spam = parameters((1,)), made("spam", every=50)
    optimizer = adam([parameter], betas=(0.9, 0.999), weight_decay=0.0, eps=1e-12)
    spam.attach(None, optimizer)
    for step in range(1, 501):
        parameter.grad = torch.ones(1)
        spam.on_tensors(seen(step, [parameter]))
        before = parameter.detach().clone()
        optimizer.step()
    bias = math.sqrt(1 - 0.999**500)
    assert float((before - parameter.detach()) / 0.1) == pytest.approx(bias * 0.1 / math.sqrt(0.001), rel=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_spam_what_is_not_finite_is_left_for_others_to_see(bad):
    (parameter,), spam = parameters((4,)), made("spam", pause=1)
    optimizer = adam([parameter])
    spam.attach(None, optimizer)
    optimizer.step()
    before = {name: t.clone() for name, t in optimizer.state[parameter].items()}
    parameter.grad[2] = bad
    spam.on_tensors(seen(2, [parameter]))
    assert parameter.grad.isfinite().tolist() == [True, True, False, True]
    assert all(torch.equal(t, before[name]) for name, t in optimizer.state[parameter].items())


def test_spam_an_element_that_never_had_a_gradient_can_have_one():
    (parameter,), spam = parameters((2,)), made("spam", pause=1)
    parameter.grad = torch.tensor([1.0, 0.0])
    optimizer = adam([parameter])
    spam.attach(None, optimizer)
    optimizer.step()
    parameter.grad = torch.tensor([1.0, 3.0])
    spam.on_tensors(seen(2, [parameter]))
    assert parameter.grad.tolist() == [1.0, 3.0]


def test_stable_adamw_is_what_it_is_defined_as():
    both, stable = parameters((3, 4), (5,)), made("stable_adamw")
    optimizer = adam(both, betas=(0.9, 0.95), eps=1e-3)
    stable.attach(None, optimizer)
    v = [np.zeros(p.shape) for p in both]
    for step in range(1, 20):
        for i, parameter in enumerate(both):
            parameter.grad = 10.0 ** (step % 7 - 4) * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(step + i)
            )
            v[i] = 0.95 * v[i] + 0.05 * parameter.grad.double().numpy() ** 2
        optimizer.step()
        action = stable.on_update(seen(step, both), updated([1.0, 1.0]))
        rms = [
            math.sqrt(np.mean(p.grad.double().numpy() ** 2 / np.maximum(u / (1 - 0.95**step), 1e-6)))
            for p, u in zip(both, v, strict=True)
        ]
        assert action.scale.tolist() == pytest.approx([1 / max(1, r) for r in rms], rel=1e-4)
        assert float(action.said["largest_rms"]) == pytest.approx(max(rms), rel=1e-4)
        if step == 1:
            assert max(rms) < 1 + 1e-6, "g^2 / v is 1 at the first step, or less by eps"


def test_stable_adamw_a_first_step_that_is_skipped_has_no_rms_and_changes_nothing():
    (parameter,), stable = parameters((4,)), made("stable_adamw")
    optimizer = adam([parameter])
    stable.attach(None, optimizer)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    action = stable.on_update(seen(1, [parameter]), updated([0.0], taken=False))
    assert action.scale.tolist() == [1.0]
    assert float(action.said["largest_rms"]) == 0.0


@given(
    norms=st.lists(st.floats(0.0625, 10, width=32), min_size=1, max_size=40),
    skipped=st.sets(st.integers(0, 39), max_size=4),
    per_rate=st.booleans(),
)
def test_clip_update_norm_is_what_it_is_defined_as(norms, skipped, per_rate):
    clip = made("clip_update_norm", window=12, sigmas=1.5, per_rate=per_rate)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    clip.attach(None, optimizer)
    history = []
    for step, norm in enumerate(norms):
        rate = optimizer.param_groups[0]["lr"] = 0.1 + 0.01 * step
        taken = step not in skipped
        action = clip.on_update(seen(step + 1, norm=1.0), updated([norm * 0.6, norm * 0.8], taken=taken))
        value, last = norm / rate if per_rate else norm, history[-12:]
        limit = np.mean(last) + 1.5 * max(np.std(last), 1e-6) if len(last) >= 6 else math.inf
        expected = limit / value if taken and value > limit else 1.0
        assert float(action.scale) == pytest.approx(expected, rel=1e-5)
        history += [value] if taken else []


def test_clip_update_norm_it_is_fed_norms_before_clipping_and_starts_at_half_a_window():
    clip = made("clip_update_norm", per_rate=False)
    clip.attach(None, None)
    scales = [
        float(clip.on_update(seen(step, norm=1.0), updated([3.0 if step in (64, 65) else 1.0 + step % 2 / 10])).scale)
        for step in range(1, 66)
    ]
    assert scales[:64] == [1.0] * 64
    history = [1.0 + step % 2 / 10 for step in range(1, 64)] + [3.0]
    assert scales[64] == pytest.approx((np.mean(history) + 3 * np.std(history)) / 3, rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_clip_update_norm_what_is_not_finite_is_no_norm(bad):
    clip = made("clip_update_norm", window=4, per_rate=False)
    clip.attach(None, None)
    for norm in (1.0, 1.1, 1.0):
        clip.on_update(seen(1, norm=1.0), updated([norm]))
    before = clip.norms.values_W.clone()
    clip.on_update(seen(4, norm=1.0), updated([bad]))
    torch.testing.assert_close(clip.norms.values_W, before, rtol=0, atol=0, equal_nan=True)


def adam_and_reset(**options):
    (parameter,), reset = parameters((3,)), made("reset_moments", window=8, **options)
    optimizer = adam([parameter])
    reset.attach(None, optimizer)
    optimizer.step()
    return parameter, optimizer, reset


def resets_of(reset, parameter, norms, taken=True):
    said = [reset.on_weights(seen(1, [parameter], norm=norm), updated([1.0], taken=taken)) for norm in norms]
    return [float(each["reset"]) for each in said]


def test_reset_moments_both_moments_are_zero_after_a_norm_that_stands_out():
    parameter, optimizer, reset = adam_and_reset(cooldown=3)
    assert resets_of(reset, parameter, [1.0, 1.1, 1.0, 1.1]) == [0.0] * 4
    assert all(bool(optimizer.state[parameter][name].all()) for name in ("exp_avg", "exp_avg_sq"))
    assert resets_of(reset, parameter, [9.0]) == [1.0]
    assert not any(bool(optimizer.state[parameter][name].any()) for name in ("exp_avg", "exp_avg_sq"))
    assert float(optimizer.state[parameter]["step"]) == 1


def test_reset_moments_it_rests_after_a_reset():
    parameter, _, reset = adam_and_reset(cooldown=3, sigmas=2.0)
    assert resets_of(reset, parameter, [1.0, 1.1, 1.0, 1.1, 9.0, 99.0, 999.0, 9999.0, 1e6]) == [0] * 4 + [
        1,
        0,
        0,
        0,
        1,
    ]


def test_reset_moments_a_skipped_step_forgets_nothing():
    parameter, optimizer, reset = adam_and_reset()
    resets_of(reset, parameter, [1.0, 1.1, 1.0, 1.1])
    assert resets_of(reset, parameter, [9.0], taken=False) == [0.0]
    assert bool(optimizer.state[parameter]["exp_avg"].all())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_reset_moments_what_is_not_finite_is_no_norm(bad):
    parameter, _, reset = adam_and_reset()
    resets_of(reset, parameter, [1.0, 1.1, 1.0, 1.1])
    assert resets_of(reset, parameter, [bad], taken=False) == [0.0]
    assert resets_of(reset, parameter, [9.0]) == [1.0]


def test_rewarm_rises_linearly_after_each_step():
    rate = made("rewarm", at=[10, 30], steps=4, from_ratio=0.2).rate
    assert [rate(step) for step in (1, 9, 14, 29, 34, 1000)] == [1.0] * 6
    for at in (10, 30):
        assert [rate(at + k) for k in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    overlapping = made("rewarm", at=[12, 10], steps=4).rate
    assert [overlapping(step) for step in range(9, 17)] == pytest.approx([1, 0, 0.25, 0, 0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize("kind", ["spam", "stable_adamw", "reset_moments"])
def test_without_adam_s_moments_it_is_refused(kind):
    optimizer = torch.optim.SGD(parameters((2,)), lr=0.1)
    with pytest.raises(InputError, match=f"interventions: {kind} works on Adam's moments, which SGD does not have"):
        made(kind).attach(None, optimizer)

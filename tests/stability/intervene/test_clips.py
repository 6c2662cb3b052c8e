"""Remedies that act on gradients: against their definitions in float64, the hand cases, and what is not finite."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.pytorch_utils import Conv1D

from .steps import made, parameters, seen

NORMS = st.lists(st.floats(0.0625, 100.0, width=32), min_size=1, max_size=60)
BAD = [math.nan, math.inf]
SIXTEENTHS = st.integers(1, 160).map(lambda number: number / 16)
"""Sums of them are exact, so that equal values deviate by nothing."""


@given(norms=NORMS, max_norm=st.one_of(st.none(), st.floats(0.1, 50.0)))
def test_zclip_is_what_it_is_defined_as(norms, max_norm):
    clip, mean, variance = made("zclip", max_norm=max_norm), 0.0, 0.0
    for number, norm in enumerate(norms):
        action, clipped = clip.on_gradient(seen(number + 1, norm=norm)), norm
        if number < 25:
            mean, variance = np.mean(norms[: number + 1]), np.var(norms[: number + 1])
        else:
            z = (norm - mean) / (math.sqrt(variance) + 1e-6)
            if z > 2.5:
                clipped = mean + 2.5 * math.sqrt(variance) / (z / 2.5)
            mean = 0.97 * mean + 0.03 * clipped
            variance = 0.97 * variance + 0.03 * (clipped - mean) ** 2
        limit = clipped if max_norm is None else min(clipped, max_norm)
        expected = limit / (norm + 1e-6) if norm > limit else 1.0
        assert float(action.scale) == pytest.approx(expected, rel=1e-5)


def test_zclip_by_hand():
    clip = made("zclip", max_norm=None)
    clip.averages = torch.tensor([25, 1.0, 0.01], dtype=torch.float64)
    action = clip.on_gradient(seen(26, norm=2.0))
    assert float(action.said["z"]) == pytest.approx(9.9999, abs=1e-6)
    assert float(action.scale) == pytest.approx(1.0625006 / 2, abs=1e-6)
    assert clip.averages.tolist() == pytest.approx([26, 1.0018750, 0.0098103], abs=1e-7)


def test_zclip_max_norm_holds_during_warm_up_and_null_is_none():
    assert float(made("zclip").on_gradient(seen(1, norm=4.0)).scale) == pytest.approx(0.25, abs=1e-6)
    assert float(made("zclip", max_norm=None).on_gradient(seen(1, norm=4.0)).scale) == 1.0


@pytest.mark.parametrize("bad", BAD)
def test_zclip_what_is_not_finite_is_no_norm_and_it_goes_on_clipping(bad):
    clip, other = made("zclip", warmup=5, max_norm=None), made("zclip", warmup=5, max_norm=None)
    for step in range(1, 9):
        norm = 1 + 0.1 * (step % 2)
        for each in (clip, other):
            each.on_gradient(seen(step, norm=norm))
        assert float(clip.on_gradient(seen(step, norm=bad)).scale) == 1.0
    assert torch.equal(clip.averages, other.averages)
    assert float(clip.on_gradient(seen(9, norm=50.0)).scale) < 0.1


@given(seed=st.integers(0, 100), exponents=st.lists(st.floats(-2, 2), min_size=12, max_size=12))
def test_adagc_is_what_it_is_defined_as(seed, exponents):
    clip, usual = made("adagc", warmup=5), [math.inf, math.inf]
    for step, exponent in enumerate(exponents, 1):
        both = parameters((3, 4), (5,), seed=seed + step, scale=10**exponent)
        before = [p.grad.double().numpy().copy() for p in both]
        total = math.sqrt(sum((g**2).sum() for g in before))
        said = clip.on_tensors(seen(step, both))
        scales = []
        for i, g in enumerate(before):
            norm = math.sqrt((g**2).sum())
            scale = min(1.0, 1 / (total + 1e-6)) if step <= 5 else min(1.0, 1.05 * usual[i] / norm)
            usual[i] = min(usual[i], scale * norm) if step <= 5 else 0.98 * usual[i] + 0.02 * scale * norm
            scales.append(scale)
            np.testing.assert_allclose(both[i].grad.numpy(), scale * g, rtol=2e-5)
        assert clip.usual_P.tolist() == pytest.approx(usual, rel=2e-5)
        if all(abs(scale - 1) > 1e-6 or scale == 1 for scale in scales):
            assert float(said["clipped_share"]) == pytest.approx(np.mean([scale < 1 for scale in scales]))


def test_adagc_by_hand():
    clip, (parameter,) = made("adagc"), parameters((1,))
    clip.usual_P, parameter.grad = torch.tensor([1.0]), torch.tensor([10.0])
    clip.on_tensors(seen(101, [parameter]))
    assert float(parameter.grad) == pytest.approx(1.05)
    assert float(clip.usual_P) == pytest.approx(1.001)


def test_adagc_a_tensor_without_a_gradient_is_not_shut_for_good():
    clip, (parameter,) = made("adagc", warmup=2), parameters((1,))
    for step, gradient in enumerate((0.5, 0.0, 0.0, 0.5), 1):
        parameter.grad = torch.tensor([gradient])
        clip.on_tensors(seen(step, [parameter]))
    assert float(parameter.grad) == 0.5


@pytest.mark.parametrize("bad", BAD)
def test_adagc_a_gradient_that_is_not_finite_changes_no_tensor_s_norm(bad):
    clip = made("adagc", warmup=2)
    for step in range(1, 6):
        both = parameters((2,), (3,), seed=step)
        clip.on_tensors(seen(step, both))
        before, both[0].grad[1] = clip.usual_P.clone(), bad
        kept = both[1].grad.clone()
        clip.on_tensors(seen(step, both))
        assert torch.equal(clip.usual_P, before)
        assert torch.equal(both[1].grad, kept)


class Layers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.conv, self.lm_head = torch.nn.Linear(4, 3), Conv1D(3, 4), torch.nn.Linear(4, 6, bias=False)


@given(seed=st.integers(0, 1000), exponent=st.floats(-4, 2), small=st.booleans())
def test_agc_is_what_it_is_defined_as(seed, exponent, small):
    torch.manual_seed(seed)
    model, clip = Layers(), made("agc")
    clip.attach(model, None)
    if small:
        torch.nn.init.normal_(model.linear.weight, std=1e-5)
    for p in model.parameters():
        p.grad = 10**exponent * torch.randn_like(p)
    before = {name: p.grad.double().numpy().copy() for name, p in model.named_parameters()}
    said = clip.on_tensors(seen(1, list(model.parameters())))
    for name, p in model.named_parameters():
        w, g = p.detach().double().numpy(), before[name]
        units = [np.s_[:]] if g.ndim == 1 else [np.s_[i] if "conv" not in name else np.s_[:, i] for i in range(3)]
        for unit in units if "head" not in name else ():
            limit = 0.01 * max(np.linalg.norm(w[unit]), 1e-3)
            g[unit] *= min(1.0, limit / np.linalg.norm(g[unit]))
        np.testing.assert_allclose(p.grad.numpy(), g, rtol=1e-4)
    after = math.sqrt(sum((g**2).sum() for g in before.values()))
    total = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters()))
    assert total == pytest.approx(after, rel=1e-5)
    assert 0 < float(said["kept"]) <= 1 + 1e-6


def test_agc_by_hand():
    model, clip = Layers(), made("agc")
    clip.attach(model, None)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    torch.nn.init.constant_(model.linear.weight, 1.0)  # rows of norm 2
    model.linear.weight.grad[1, 0] = 1.0
    model.lm_head.weight.grad[0, 0] = 7.0
    clip.on_tensors(seen(1, list(model.parameters())))
    assert model.linear.weight.grad[1].tolist() == pytest.approx([0.02, 0, 0, 0])
    assert float(model.lm_head.weight.grad[0, 0]) == 7.0


def naive_skips(losses, norms, window=128, sigmas=6.0, most=16):
    """As OLMo-core decides, one list at a time; finite values only enter it."""
    kept, skips, row = ([], []), [], 0
    for now in zip(losses, norms, strict=True):
        bad = not all(map(math.isfinite, now))
        for history, value in zip(kept, now, strict=True):
            last = history[-window:]
            if math.isfinite(value) and len(last) + 1 >= window // 2:
                bad |= value - np.mean(last) > sigmas * np.std(last, ddof=1)
            history.extend([value] if math.isfinite(value) else [])
        row = row + 1 if bad and row < most else 0
        skips.append(row > 0)
    return skips


def skips_of(losses, norms, **options):
    skip = made("skip_step", **options)
    pairs = enumerate(zip(losses, norms, strict=True), 1)
    return [bool(skip.on_gradient(seen(step, loss=loss, norm=norm)).skip) for step, (loss, norm) in pairs]


@given(
    values=st.lists(st.tuples(SIXTEENTHS, SIXTEENTHS), min_size=1, max_size=60),
    bad=st.sets(st.integers(0, 59), max_size=5),
)
def test_skip_step_is_what_it_is_defined_as(values, bad):
    losses, norms = map(list, zip(*values, strict=True))
    for i in bad & set(range(len(losses))):
        (losses if i % 2 else norms)[i] = math.nan
    got = skips_of(losses, norms, window=16, sigmas=2.1, most_in_a_row=3)
    assert got == naive_skips(losses, norms, 16, 2.1, 3)


def test_skip_step_by_hand():
    history = [2.9, 3.1] * 32
    for loss, expected in ((3.7, True), (3.5, False)):
        assert skips_of([*history, loss], [1.0, 1.1] * 32 + [1.0]) == [False] * 64 + [expected]
        assert skips_of([1.0, 1.1] * 32 + [1.0], [*history, loss])[-1] is expected, "either is enough"
    assert not any(skips_of(history[:62] + [9.0], [1.0, 1.1] * 31 + [1.0])), "63 values are too few"
    assert skips_of(history[:63] + [9.0], [1.0, 1.1] * 32)[-1], "64 are enough, the current one included"


def test_skip_step_only_what_is_watched_counts():
    history, flat = [*[2.9, 3.1] * 32, 9.0], [1.0, 1.1] * 32 + [1.0]
    assert skips_of(history, flat, watch="loss")[-1]
    assert not skips_of(history, flat, watch="gradient_norm")[-1]


def test_skip_step_a_plateau_becomes_the_new_normal():
    losses = [2.9, 3.1] * 64 + [5.0, 5.2] * 64
    skips = skips_of(losses, [1.0, 1.1] * 128, most_in_a_row=1000)[128:]
    assert skips[0]
    assert not any(skips[20:])
    assert sum(skips) < 20


@pytest.mark.parametrize("bad", [*BAD, -math.inf])
def test_skip_step_one_value_that_is_not_finite_is_skipped_alone(bad):
    losses = [2.9, 3.1] * 150
    losses[150] = bad
    skips = skips_of(losses, [1.0, 1.1] * 150)
    assert [step for step, skip in enumerate(skips) if skip] == [150]


def test_skip_step_after_the_most_in_a_row_an_update_is_made():
    skips = skips_of([2.9, 3.1] * 32 + [math.nan] * 9, [1.0, 1.1] * 36 + [1.0], most_in_a_row=4)
    assert skips[64:] == [True] * 4 + [False] + [True] * 4

"""Remedies that need a history: at the step that they name they act, and at the one before they do not."""

import pytest
import torch

from .steps import made, parameters, seen, updated


def skips(remedy, step, norm):
    return bool(remedy.on_gradient(seen(step, norm=norm)).skip)


def clips(remedy, step, norm):
    return float(remedy.on_gradient(seen(step, norm=norm)).scale) < 1


def clips_the_update(remedy, step, norm):
    return float(remedy.on_update(seen(step, norm=1.0), updated([norm])).scale) < 1


def resets(remedy, step, norm):
    return bool(remedy.on_weights(seen(step, norm=norm), updated([1.0]))["reset"])


def optimizer():
    return torch.optim.AdamW(parameters((2,)), lr=1.0, fused=True)


@pytest.mark.parametrize("began", [0, 100])
@pytest.mark.parametrize(
    ("kind", "options", "acts"),
    [
        ("skip_step", {"window": 16}, skips),
        ("zclip", {"warmup": 7, "max_norm": None}, clips),
        ("clip_update_norm", {"window": 16}, clips_the_update),
        ("reset_moments", {"window": 16}, resets),
    ],
)
def test_a_remedy_acts_from_its_first_step_on(kind, options, acts, began):
    for early in (1, 0):
        remedy = made(kind, **options)
        remedy.attach(None, optimizer())
        remedy.began = began
        ((first, _),) = remedy.first_steps()
        for step in range(began + 1, first - early):
            assert not acts(remedy, step, 1 + 0.01 * (step % 3))
        assert acts(remedy, first - early, 1000.0) == (not early)
        assert list(remedy.notes(first)) == []
        (told,) = remedy.notes(first - 1)
        assert told.endswith(f"before step {first}, and the run ends at step {first - 1}")


@pytest.mark.parametrize("began", [0, 100])
def test_adagc_has_a_limit_for_each_tensor_from_its_first_step_on(began):
    clip, both = made("adagc", warmup=5, max_norm=1e30), parameters((3,), (4,))
    clip.began = began
    ((first, _),) = clip.first_steps()
    for step in range(began + 1, first + 1):
        both[0].grad = torch.ones(3) * (100.0 if step >= first - 1 else 1.0)
        both[1].grad = torch.ones(4)
        clipped = float(clip.on_tensors(seen(step, both))["clipped_share"])
        assert clipped == (0.5 if step == first else 0.0)


@pytest.mark.parametrize("began", [0, 100])
def test_spam_clips_and_forgets_from_the_steps_that_it_names(began):
    (parameter,) = both = parameters((3,))
    spam, adam = made("spam", every=8, pause=4, threshold=2.0), torch.optim.AdamW(both, lr=0.1, fused=True)
    spam.attach(None, adam)
    spam.began = began
    (clips_from, _), (forgets_from, _) = spam.first_steps()
    for step in range(began + 1, forgets_from + 1):
        parameter.grad = torch.full((3,), 10.0 ** (step - began))
        clipped = float(spam.on_tensors(seen(step, both))["clipped_share"])
        assert clipped == (1.0 if clips_from <= step < forgets_from else 0.0)
        forgotten = adam.state and float(adam.state[parameter]["exp_avg_sq"].sum()) == 0
        assert bool(forgotten) == (step == forgets_from)
        adam.step()
    assert spam.rate(forgets_from - 1) == 1 > spam.rate(forgets_from)

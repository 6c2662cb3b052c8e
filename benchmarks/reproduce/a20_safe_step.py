"""A20: a rate that is stepped up a thousandfold ruins a small classifier, unless each step is cut to the radius within which
a softmax's Taylor series converges.

Shapes: N images, F features, K classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.compare.statistics import Effect, mean_over_seeds
from common.errors import InputError

from .base import Finding, Outcome, Seed, Verdict, finding
from .intervals import high, low

RATES = (1e-4, 1e-3, 1e-2)
FACTOR, FROM, STEPS = 1000.0, 50, 300
"""The rate is multiplied from the step FROM to the end."""
IMAGES = 1437
"""Of 1,797, for training; the others for testing."""
PLAIN, CLIPPED, CONTROLLED, MATCHED = "plain", "clipped", "controlled", "plain, at the controller's mean rate"
RECOVERED, CHANCE = 0.8, 0.2
"""Accuracies: at least as good has recovered; at most as good is near chance, which is 0.1."""


@finding
class SafeStep(Finding):
    """Reproduced if, by the 95% intervals over seeds of the final test accuracy, plain Adam is near chance (at most CHANCE)
    at the largest base rate and better the smaller the rate is, and the controller has recovered (at least RECOVERED) at all
    three; else not reproduced. Plain Adam's middle value (published: about 50%), clipping and the matched rate are told and
    not judged. The published text gives neither batch size nor length: here each step is of all training images, and there
    are 300."""

    key = "A20"
    title = "Steps cut to the softmax's radius of convergence survive a rate x1000"
    source = "arXiv 2603.13552"
    claim = "digits, MLP 64-128-10: plain Adam recovers at 1e-4, ends near 50% at 1e-3, at chance at 1e-2; cut steps survive all"
    seeds = 5

    def measure(self, seed: int, overrides: Sequence[str]) -> Any:
        arms: dict[str, Any] = {}
        for rate in RATES:
            for name in (PLAIN, CLIPPED, CONTROLLED):
                arms[f"{rate:g} {name}"] = train(seed, rate, name)
            arms[f"{rate:g} {MATCHED}"] = train(seed, rate, PLAIN, arms[f"{rate:g} {CONTROLLED}"]["mean scale"])
        return arms

    def judge(self, seeds: Sequence[Seed]) -> Outcome:
        def over(rate: float, arm: str, value: str = "accuracy") -> Effect:
            return mean_over_seeds([float(seed.measured[f"{rate:g} {arm}"][value]) for seed in seeds])

        plain, safe = ([over(rate, arm) for rate in RATES] for arm in (PLAIN, CONTROLLED))
        falls = all(low(better) > high(worse) for better, worse in itertools.pairwise(plain))
        good = falls and high(plain[-1]) <= CHANCE and all(low(each) >= RECOVERED for each in safe)
        told = f"test accuracy at 1e-4, 1e-3 and 1e-2: plain {listed(plain)}, cut steps {listed(safe)}, "
        told += f"clipped {listed([over(rate, CLIPPED) for rate in RATES])}, "
        told += f"plain at the mean rate of the cut steps {listed([over(rate, MATCHED) for rate in RATES])}."
        rows = []
        for rate in RATES:
            for arm in (PLAIN, CLIPPED, CONTROLLED, MATCHED):
                names = ("before", "one step later", "accuracy", "largest r", "mean scale")
                before, soon, last, r, scale = (over(rate, arm, name) for name in names)
                rows.append(
                    {
                        "digits, rate x1000 from step 50": f"{rate:g}, {arm}",
                        "accuracy before": f"{before.mean:.2f}",
                        "a step later": f"{soon.mean:.2f}",
                        "at the end [95%]": last.format(".3f"),
                        "r of that step": f"{r.mean:.3g}",
                        "mean scale of the steps": f"{scale.mean:.2g}",
                    }
                )
        return Outcome(Verdict.REPRODUCED if good else Verdict.NOT_REPRODUCED, told, rows)


def listed(effects: Sequence[Effect]) -> str:
    """Means for a sentence."""
    return " / ".join(f"{effect.mean:.2f}" for effect in effects)


def digits(seed: int) -> tuple[Any, Any, Any, Any]:
    """The 8 x 8 digits of scikit-learn, from 0 to 1, in an order of the seed: x_NF, y_N for training, then for testing.
    Raises InputError if the package is missing."""
    import torch

    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError(
            "A20: its images are in scikit-learn, which is not installed: pip install -r requirements-reproduce.txt, or name "
            "the other findings"
        ) from None
    found = load_digits()
    order = np.random.default_rng(seed).permutation(len(found.target))
    x_NF = torch.tensor(found.data[order] / 16, dtype=torch.float32)
    y_N = torch.tensor(found.target[order])
    return x_NF[:IMAGES], y_N[:IMAGES], x_NF[IMAGES:], y_N[IMAGES:]


def train(seed: int, rate: float, arm: str, scale: float = 1.0) -> dict[str, float]:
    """Train with Adam (0.9, 0.999) on all images at once. CLIPPED: the gradient to a norm of 1. CONTROLLED: the whole step d
    to where r = max over images of (max_k a_k - min_k a_k) / pi is at most 1, a the derivative of the logits along d.
    ``scale``: of the rate after it was stepped up.

    Returns test accuracies (before the rate is stepped up, one step later, and at the end), r of that step as the optimizer
    took it, and the mean factor on the steps after it.
    """
    import torch
    from torch.func import functional_call, jvp

    x_NF, y_N, test_NF, test_N = digits(seed)
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    found, scales = {}, []

    def accuracy() -> float:
        with torch.no_grad():
            return float((model(test_NF).argmax(1) == test_N).double().mean())

    def logits(parameters: Any) -> Any:
        return functional_call(model, parameters, (x_NF,))

    for step in range(1, STEPS + 1):
        if step == FROM:
            found["before"] = accuracy()
            optimizer.param_groups[0]["lr"] = rate * FACTOR * scale
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x_NF), y_N).backward()
        if arm == CLIPPED:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.step()
        factor = 1.0
        if arm == CONTROLLED or step == FROM:
            change = {name: p.detach() - before[name] for name, p in model.named_parameters()}
            a_NK = jvp(logits, (before,), (change,))[1]
            r = float((a_NK.amax(1) - a_NK.amin(1)).max()) / math.pi
            if step == FROM:
                found["largest r"] = r
            if arm == CONTROLLED:
                factor = min(1.0, 1 / r)
                with torch.no_grad():
                    for name, p in model.named_parameters():
                        p.copy_(before[name] + factor * change[name])
        if step == FROM:
            found["one step later"] = accuracy()
        if step >= FROM:
            scales.append(factor)
    return found | {"accuracy": accuracy(), "mean scale": scale if scale != 1.0 else float(np.mean(scales))}

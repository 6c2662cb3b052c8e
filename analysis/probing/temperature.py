"""The temperature at which a model predicts held-out text best, and the one at which it is as uncertain as another.

A flatter distribution gives every word but the likeliest more probability. Two models are therefore also compared when each is
at its own best temperature, and when both have the same mean entropy.

Shapes: N tokens, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq

from .encode import Encoded
from .score import LOGITS
from .states import Reader

TOKENS = 2048
"""Held-out tokens on which a temperature is fitted."""
_STEP = math.log(2.0)  # of ln beta, beta = 1 / temperature
_STEPS = 6  # up to 64 and down to 1/64
_PRECISION = 1e-6  # of ln beta: one model at two temperatures must not look like two


class Calibration:
    """A model's next-token distributions on a sample of the study's passages, at any temperature."""

    def __init__(self, model: Any, encoded: Encoded, *, label: str, seed: int) -> None:
        """Read a sample of the passages, the same for every model with the study's tokenizer."""
        self._reader = Reader(model, encoded, label)
        order = np.random.default_rng([seed, len(encoded.passages)]).permutation(len(encoded.passages))
        states: list[torch.Tensor] = []
        targets: list[torch.Tensor] = []
        found = 0
        with torch.inference_mode():
            for index in order:
                ids = encoded.passages[index]
                if found >= TOKENS:
                    break
                if len(ids) < 2:
                    continue
                states.append(self._reader.body(ids[None])[0, :-1])
                targets.append(torch.from_numpy(ids[1:]).to(states[-1].device))
                found += len(ids) - 1
        self._h_ND = torch.cat(states)[:TOKENS]
        self._y_N = torch.cat(targets)[:TOKENS]

    def best(self) -> float:
        """The temperature with the lowest mean NLL; at most 64 and at least 1/64."""
        return _solve(lambda beta: self._means(beta)[0], rising=True)[0]

    def matching(self, entropy: float) -> float:
        """The temperature with this mean entropy in nats; NaN if there is none between 1/64 and 64. Exactly 1 for its own."""
        temperature, found = _solve(lambda beta: self._means(beta)[1] - entropy, rising=False)
        return temperature if found else math.nan

    def entropy(self, temperature: float = 1.0) -> float:
        """Mean entropy at a temperature, nats."""
        return self._means(1 / temperature)[1]

    def nll(self, temperature: float = 1.0) -> float:
        """Mean negative log-likelihood of the sample at a temperature, nats per token."""
        return self._means(1 / temperature)[2]

    def _means(self, beta: float) -> tuple[float, float, float]:
        """Means over the tokens: the slope of the NLL in beta, sum_k P_k z_k - z_y, which rises; the entropy; the NLL."""
        sums = torch.zeros(3, dtype=torch.float64)
        step = max(1, LOGITS // len(self._reader.vocabulary))
        with torch.inference_mode():
            for h_RD, y_R in zip(self._h_ND.split(step), self._y_N.split(step), strict=True):
                z_RV = self._reader.logits(h_RD).float()
                z_RV = (z_RV - z_RV.amax(-1, keepdim=True)).clamp(min=-1e30)  # a token ruled out has -inf: 0 * -inf
                log_p_RV = (beta * z_RV).log_softmax(-1)
                p_RV = log_p_RV.exp()
                z_R = z_RV.gather(1, y_R[:, None])[:, 0]
                sums += torch.stack(
                    [
                        ((p_RV * z_RV).sum(-1) - z_R).double().sum(),
                        -(p_RV * log_p_RV).double().sum(),
                        -log_p_RV.gather(1, y_R[:, None]).double().sum(),
                    ]
                ).cpu()
        slope, entropy, nll = (sums / len(self._y_N)).tolist()
        return slope, entropy, nll


def _solve(function: Callable[[float], float], *, rising: bool) -> tuple[float, bool]:
    """The temperature at which a monotone function of beta is zero, or the end of the range on that side; whether it is zero.

    The range is searched from a temperature of 1 outwards, which is near most answers.
    """

    @cache
    def at(log_beta: float) -> float:
        return function(math.exp(log_beta))

    if at(0.0) == 0:
        return 1.0, True
    step = -_STEP if (at(0.0) > 0) == rising else _STEP
    for number in range(_STEPS):
        near, far = number * step, (number + 1) * step
        if at(near) * at(far) <= 0:
            return math.exp(-brentq(at, near, far, xtol=_PRECISION)), True
    return math.exp(-_STEPS * step), False

"""TFSD with a level that is learnt from the tokens seen so far. Nothing of a batch acts on the same batch, so no position sees
what comes after it."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .objective_tfsd import RaisedTFSD
from .objective_weighted import log_true
from .objectives import StepState, TokenLogits, log_partition
from .registry import register_objective

QUANTILE_STEP = 0.3
"""Nats by which the level of tfsd_quantile moves, times the difference of the two shares."""
HELD_STEP = 1.0
"""Nats by which the level of tfsd_held moves, times the difference of the two weights."""
LIMIT = 30.0
"""Nats beyond which the level of tfsd_held does not go."""


class AdaptiveTFSD(RaisedTFSD):
    """Base: a = log Z + r with one r for all tokens, which moves after every step. The true logit is raised or left, never
    lowered: where p_y > e^r, Q = P and c = 0."""

    state: StepState

    def relative_level(self) -> Tensor:
        """r (1,)."""
        return self.state.value

    def level(self, t: TokenLogits) -> Tensor:
        return torch.maximum(t.true, log_partition(t) + self.relative_level())

    def terms(self, t: TokenLogits) -> tuple[Tensor, Mapping[str, Any]]:
        loss, parts = super().terms(t)
        return loss, {**parts, "objective/level": self.relative_level().expand_as(loss), **self.measured(t)}

    def measured(self, t: TokenLogits) -> dict[str, Tensor]:
        """More to report of each token (N,)."""
        return {}

    @abstractmethod
    def moved(self, means: Mapping[str, Tensor]) -> Tensor:
        """The next r."""

    def after_step(self, means: Mapping[str, Tensor]) -> None:
        self.state.move_to(self.moved(means))


@register_objective("tfsd_quantile")
class QuantileTFSD(AdaptiveTFSD):
    """TFSD towards what the model itself does with its better tokens: r is ``margin`` above the ``quantile`` of log p_y over the
    tokens before. Without a margin, that share of the tokens gets a gradient.

    The quantile starts at 0, where c is nearly that of tfsd_anchored, and is followed by at most QUANTILE_STEP nats a step
    (stochastic approximation, Robbins & Monro 1951). A target that the model sets by its own level has a fixed point wherever
    all tokens are predicted equally well, such as at P = 1/V.
    """

    @dataclass(frozen=True)
    class Options:
        quantile: float = 0.5
        """Share of the tokens whose log p_y is below the quantile."""
        margin: float = 0.0
        """Nats by which r is above the quantile."""

        def __post_init__(self) -> None:
            if not 0 < self.quantile < 1:
                raise ValueError(f"quantile must be between 0 and 1, not {self.quantile}")
            if not 0 <= self.margin <= 100:
                raise ValueError(f"margin must be from 0 to 100, not {self.margin}")

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.state = StepState(0.0)

    def relative_level(self) -> Tensor:
        return self.state.value + self.options.margin

    def measured(self, t: TokenLogits) -> dict[str, Tensor]:
        return {"objective/below_quantile": (log_true(t) < self.state.value).to(t.true.dtype).detach()}

    def moved(self, means: Mapping[str, Tensor]) -> Tensor:
        return self.state.value + QUANTILE_STEP * (self.options.quantile - means["objective/below_quantile"])


@register_objective("tfsd_held")
class HeldTFSD(AdaptiveTFSD):
    """TFSD with a learnt level: r moves until the mean of c over the tokens is ``weight``. It starts where c would be that for a
    token with p_y = 0."""

    @dataclass(frozen=True)
    class Options:
        weight: float = 0.3
        """The mean c to hold."""

        def __post_init__(self) -> None:
            if not 0 < self.weight < 1:
                raise ValueError(f"weight must be between 0 and 1, not {self.weight}")

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.state = StepState(math.log(options.weight / (1 - options.weight)))

    def moved(self, means: Mapping[str, Tensor]) -> Tensor:
        moved = self.state.value + HELD_STEP * (self.options.weight - means["objective/weight"])
        return moved.clamp(-LIMIT, LIMIT)

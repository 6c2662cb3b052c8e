"""Universal self-distillation: a target weight from the own confidence, and ranks of the others that follow Zipf's law."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .objectives import Objective, StepState, TokenLogits, negative_log_likelihood
from .registry import register_objective

RATE = 0.1
"""Share of a step in the running mean of p_y^2."""


@register_objective("uskd")
class UniversalSelfDistillation(Objective):
    """-(p_y^2 + 1 - m) log p_y + beta CE(Zipf, P'), the weight held fixed (USKD, Yang et al. 2023, arXiv 2303.13005;
    mmcls/models/dis_losses/uskd.py in yzd-v/cls_KD). P' is P without the target, renormalised, and Zipf gives the r-th most
    probable other token a share in proportion to 1/r.

    Here Zipf's law ends at the rank ``ranks``, so that no row is sorted. The ranks up to there have about ln(ranks)/ln(V) of the
    whole law's mass, 0.57 at 128 of 8192; renormalised, they have all of it.
    The weight is no probability: it reaches 2 - m. m is the mean of p_y^2, of the batch with the authors, which lets later
    positions, the size of a chunk and the number of ranks into a token's loss; here of the steps before, so that the mean weight
    is about 1. Left out is their weak head on a middle layer, with its own small loss and a say in the ranks, which here are by P
    alone.
    """

    detached = True
    shift_invariant = True

    @dataclass(frozen=True)
    class Options:
        beta: float = 0.1
        """Weight of the second part."""
        ranks: int = 128
        """Other tokens that Zipf's law is over, the most probable ones; at most V - 1."""

        def __post_init__(self) -> None:
            if not 0 <= self.beta <= 1000:
                raise ValueError(f"beta must be from 0 to 1000, not {self.beta}")
            if not 1 <= self.ranks <= 1 << 20:
                raise ValueError(f"ranks must be from 1 to {1 << 20}, not {self.ranks}")

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.uses_likeliest = options.ranks
        self.state: StepState = StepState(0.0)

    def loss(self, t: TokenLogits) -> Tensor:
        return self.terms(t)[0]

    def terms(self, t: TokenLogits) -> tuple[Tensor, Mapping[str, Any]]:
        assert t.rivals is not None
        nll_N = negative_log_likelihood(t)
        weight_N = (-2 * nll_N.detach()).exp() + 1 - self.state.value
        shares_K = 1 / torch.arange(1, t.rivals.shape[1] + 1, dtype=nll_N.dtype, device=nll_N.device)
        others_N = t.negatives - t.rivals @ (shares_K / shares_K.sum())
        return weight_N * nll_N + self.options.beta * others_N, {"objective/weight": weight_N}

    def after_step(self, means: Mapping[str, Tensor]) -> None:
        self.state.move_to(self.state.value + RATE * (means["objective/weight"] - 1))

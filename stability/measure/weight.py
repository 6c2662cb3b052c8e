"""The distribution of the TFSD weight over tokens, as a histogram that sums over ranks.

Shapes: N tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

WEIGHT_BINS = 16_000
"""Histogram bins of log10 c between 1e-16 and 1: a bin is 0.23% wide, so a quantile is within 0.12%."""
_WEIGHT_DECADES = 16


def weight_histogram(weight_N: Tensor, valid_N: Tensor) -> Tensor:
    """Counts (WEIGHT_BINS,) of log10 of the valid weights, from 1e-16 (and below) to 1. Sums over ranks are exact."""
    position = (weight_N.clamp(1e-16, 1).log10() + _WEIGHT_DECADES) * (WEIGHT_BINS / _WEIGHT_DECADES)
    bins_N = position.nan_to_num(0).long().clamp(0, WEIGHT_BINS - 1)
    return torch.zeros(WEIGHT_BINS, device=weight_N.device).scatter_add_(0, bins_N, valid_N.float())


def weight_quantile(histogram: Tensor, q: float) -> Tensor:
    """The centre of the bin that holds quantile ``q`` of the weights."""
    cumulative = histogram.cumsum(0)
    index = torch.searchsorted(cumulative, q * cumulative[-1:])[0]
    return 10 ** ((index + 0.5) * (_WEIGHT_DECADES / WEIGHT_BINS) - _WEIGHT_DECADES)

"""Logits of some other classes than the target, for objectives that compare it with more than sums over the row, but not with all
of it. Shapes: N tokens of a batch, C of one chunk, V vocabulary, K rivals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ABSENT = -1e30
"""The logit of a rival that is none: without a share in any softmax, and without NaN where there are no others."""


@dataclass(frozen=True)
class Rivals:
    """The distinct targets of a batch: each is a rival of all tokens but those whose target it is."""

    ids_K: Tensor
    """Distinct classes; on a GPU, min(N, V) of them, since counting them would wait for the device."""
    there_K: Tensor
    """Which of these are targets of the batch."""

    @staticmethod
    def of_batch(y_N: Tensor, valid_N: Tensor, n_classes: int) -> Rivals:
        """Those of the targets ``y_N`` that count."""
        slots_N = torch.where(valid_N > 0, y_N, n_classes)
        there_V = torch.zeros(n_classes + 1, dtype=torch.bool, device=y_N.device).index_fill_(0, slots_N, True)[:-1]
        most = min(len(y_N), n_classes) if y_N.is_cuda else max(int(there_V.sum()), 1)
        ids_K = there_V.int().argsort(descending=True, stable=True)[:most]
        return Rivals(ids_K, there_V[ids_K])

    def logits(self, z_CV: Tensor, bias_V: Tensor | None, shift_C: Tensor, y_C: Tensor) -> Tensor:
        """True logits (C, K) of the rivals of targets ``y_C``."""
        z_CK = z_CV.index_select(1, self.ids_K) + shift_C[:, None]
        z_CK = z_CK if bias_V is None else z_CK + bias_V[self.ids_K]
        return z_CK.masked_fill(~self.there_K | (self.ids_K == y_C[:, None]), ABSENT)

    def add(self, dz_CV: Tensor, d_CK: Tensor) -> Tensor:
        """Add the gradient of their logits to that of all, in place."""
        return dz_CV.index_add_(1, self.ids_K, d_CK)

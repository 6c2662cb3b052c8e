"""Logits of some other classes than the target, for objectives that compare it with more than sums over the row, but not with all
of it. Shapes: N tokens of a batch, C of one chunk, V vocabulary, K rivals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .objectives import Objective

ABSENT = -1e30
"""The logit of a rival that is none: without a share in any softmax, and without NaN where there are no others."""


class Rivals(ABC):
    """Which classes a token's target is compared with."""

    @abstractmethod
    def choose(self, z_CV: Tensor, y_C: Tensor) -> tuple[Tensor, Tensor | None]:
        """Distinct classes (C, K) for the targets ``y_C``, and which of them are none (C, K), of logits up to a constant per
        token."""

    def logits(self, z_CV: Tensor, bias_V: Tensor | None, shift_C: Tensor, y_C: Tensor) -> tuple[Tensor, Tensor]:
        """The rivals (C, K) and their true logits (C, K) from ``z_CV + bias_V + shift_C``."""
        with torch.no_grad():
            classes_CK, absent_CK = self.choose(z_CV if bias_V is None else z_CV + bias_V, y_C)
        z_CK = z_CV.gather(1, classes_CK) + shift_C[:, None]
        z_CK = z_CK if bias_V is None else z_CK + bias_V[classes_CK]
        return classes_CK, z_CK if absent_CK is None else z_CK.masked_fill(absent_CK, ABSENT)


class BatchTargets(Rivals):
    """The distinct targets of a batch: each is a rival of all tokens but those whose target it is."""

    def __init__(self, y_N: Tensor, valid_N: Tensor, n_classes: int) -> None:
        slots_N = torch.where(valid_N > 0, y_N, n_classes)
        there_V = torch.zeros(n_classes + 1, dtype=torch.bool, device=y_N.device).index_fill_(0, slots_N, True)[:-1]
        # To count them would wait for a GPU.
        most = min(len(y_N), n_classes) if y_N.is_cuda else max(int(there_V.sum()), 1)
        self.classes_K = there_V.int().argsort(descending=True, stable=True)[:most]
        self.absent_K = ~there_V[self.classes_K]

    def choose(self, z_CV: Tensor, y_C: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.classes_K.expand(len(y_C), -1), self.absent_K | (self.classes_K == y_C[:, None])


class Likeliest(Rivals):
    """The ``count`` classes with the largest logits besides the target, in descending order."""

    def __init__(self, count: int) -> None:
        self.count = count

    def choose(self, z_CV: Tensor, y_C: Tensor) -> tuple[Tensor, Tensor | None]:
        others_CV = z_CV.scatter(1, y_C[:, None], float("-inf"))
        return others_CV.topk(min(self.count, z_CV.shape[1] - 1), 1).indices, None


def rivals_of(objective: Objective, y_N: Tensor, valid_N: Tensor, n_classes: int) -> Rivals | None:
    """Those that the objective asks for, of a batch with the targets ``y_N``, of which ``valid_N`` count."""
    if objective.uses_batch:
        return BatchTargets(y_N, valid_N, n_classes)
    return Likeliest(objective.uses_likeliest) if objective.uses_likeliest else None

"""The mean objective of some sequences with all their logits at once, which can be differentiated twice.

Shapes: B sequences, T positions, N targets that count, V vocabulary, D features.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from data.batches import IGNORED
from model.heads import Head
from model.objectives import Objective, TokenLogits, negative_log_likelihood


class NegativeLogLikelihood(Objective):
    """-log P_y"""

    def loss(self, t: TokenLogits) -> Tensor:
        return negative_log_likelihood(t)


def whole_loss(model: Any, objective: Objective, x_BT: Tensor, y_BT: Tensor) -> Tensor:
    """The mean objective () of a batch from all its logits at once, which can be differentiated twice."""

    def loss(head: Head, f_ND: Tensor) -> Tensor:
        kept_N = y_BT.flatten() != IGNORED
        f_ND, y_N1 = f_ND[kept_N], y_BT.flatten()[kept_N, None]
        z_NV = head.class_logits(f_ND).float()
        others_NV = z_NV.scatter(1, y_N1, -math.inf)
        true_N, negatives_N = z_NV.gather(1, y_N1).squeeze(1), others_NV.logsumexp(1)
        t = TokenLogits(true_N, negatives_N, z_NV.mean(1), others_NV.amax(1), head.shift(f_ND))
        seen = t if isinstance(objective, NegativeLogLikelihood) else head.in_training(t)
        return objective.loss(seen).mean()

    found: Tensor = model.lm_head(model.model(input_ids=x_BT, use_cache=False).last_hidden_state, loss)
    return found

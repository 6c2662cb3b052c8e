"""The mean objective of some sequences with all their logits at once, which can be differentiated twice.

Shapes: B sequences, T positions, N targets that count, V vocabulary, D features.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from data.batches import IGNORED
from model.heads import Head, as_trained
from model.objectives import Objective, TokenLogits, negative_log_likelihood, of_rows
from model.rivals import rivals_of


class NegativeLogLikelihood(Objective):
    """-log P_y"""

    def loss(self, t: TokenLogits) -> Tensor:
        return negative_log_likelihood(t)


def whole_loss(model: Any, objective: Objective, x_BT: Tensor, y_BT: Tensor) -> Tensor:
    """The mean objective () of a batch from all its logits at once, which can be differentiated twice."""

    def loss(head: Head, f_ND: Tensor) -> Tensor:
        kept_N = y_BT.flatten() != IGNORED
        f_ND, y_N = f_ND[kept_N], y_BT.flatten()[kept_N]
        taught_NV = None if objective.teacher is None else objective.teacher(x_BT).logits(kept_N)
        rivals = rivals_of(objective, y_N, y_N >= 0, head.n_classes)
        t = of_rows(head.class_logits(f_ND).float(), y_N, head.shift(f_ND), taught_NV, rivals)
        if objective.uses_auxiliary:
            t = replace(t, auxiliary=head.auxiliary_logits(f_ND).float())
        return objective.loss(t if isinstance(objective, NegativeLogLikelihood) else as_trained(head, t)).mean()

    found: Tensor = model.lm_head(model.model(input_ids=x_BT, use_cache=False).last_hidden_state, loss)
    return found

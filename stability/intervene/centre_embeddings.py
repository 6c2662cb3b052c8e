"""Centring of the output embedding after each step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from model import LinearHead
from record.metrics import Metric

from .base import INTERVENTIONS, Intervention, Seen, Update
from .output_rows import OutputRows


@INTERVENTIONS.register("centre_embeddings")
class CentreEmbeddings(Intervention):
    """Subtracts the mean output embedding from every one of them after each step (mu-centring, arXiv 2601.02031).

    For a linear head without a soft cap, all logits of a token change by the same number, so that P stays what it was; without a
    bias the mean logit becomes 0. For a metric head it is another model, as if every hidden state were moved by the mean. With
    a tied weight the input embeddings move too. The optimizer's moments stay as they are. Padding of the vocabulary is left out
    of the mean and stays as it is.
    """

    metrics = (Metric("mean_norm", "1", "same", "L2 norm of the mean output embedding that was subtracted", "norm"),)

    def attach(self, model: Any, optimizer: Optimizer) -> Sequence[RemovableHandle]:
        head = model.lm_head
        self.rows = OutputRows(head)
        self.keeps_p = isinstance(head, LinearHead) and head.soft_cap is None
        self.tied = head.weight is model.get_input_embeddings().weight
        return ()

    def notes(self, last: int) -> Iterator[str]:
        if not self.keeps_p:
            yield "changes the predictions of this head; P stays the same for a linear one"
        if self.tied:
            yield "moves the input embeddings too, which are tied; head.tied=false keeps them"
        if self.began:
            yield f"takes the whole mean out of a trained embedding at step {self.began + 1}, which moves all logits at once"

    @torch.no_grad()
    def on_weights(self, seen: Seen, update: Update) -> Mapping[str, Tensor]:
        mean_D = self.rows.mean()
        rows_RD = self.rows.of(self.rows.weight)
        rows_RD.sub_(torch.where(update.taken, mean_D, 0.0).to(rows_RD.dtype))
        return {"mean_norm": torch.where(update.taken, torch.linalg.vector_norm(mean_D), 0.0)}

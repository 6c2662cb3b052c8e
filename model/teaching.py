"""Teachers: models whose predictions an objective takes as targets. Shapes: B batch, T positions, N = B*T tokens, C tokens of
one chunk, V vocabulary, D width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .heads import Head


@dataclass(frozen=True)
class Taught:
    """What a teacher has to say of N tokens, before its vocabulary is looked at."""

    head: Head
    h_ND: Tensor
    """Its last hidden states."""
    f_ND: Tensor
    """Their features."""

    def logits(self, chunk: slice | Tensor) -> Tensor:
        """Its logits (C, V) of these tokens (a slice, or which of all), in float32."""
        return self.head.true_logits(self.f_ND[chunk])[:, : self.head.n_classes]


class Teacher:
    """An earlier checkpoint of this project, in evaluation mode. It is no part of the model that it teaches."""

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint
        self._model: Any = None

    def use(self, model: Any, n_classes: int) -> None:
        """Take the model of the checkpoint. Raises ValueError for one that is none of this project or does not predict
        ``n_classes`` tokens."""
        found = getattr(getattr(model, "lm_head", None), "n_classes", None)
        if found != n_classes:
            raise ValueError(
                f"it predicts {found} tokens, not {n_classes}" if found else "it is no model of this project"
            )
        self._model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, input_ids: Tensor | None, **arguments: Any) -> Taught:
        """Its features of a batch (B, T). ``arguments``: for its body. Raises ValueError before it has a model."""
        if self._model is None or input_ids is None:
            raise ValueError(f"the teacher, {self.checkpoint}, needs its model (Teacher.use) and input_ids")
        self._model.to(input_ids.device)
        h_BTD = self._model.model(input_ids=input_ids, **arguments).last_hidden_state
        h_ND = h_BTD.flatten(0, 1)
        with torch.autocast(h_ND.device.type, enabled=False):
            return Taught(self._model.lm_head, h_ND, self._model.lm_head.features(h_ND, torch.float32))

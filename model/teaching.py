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
    f_ND: Tensor
    """Features of its hidden states."""

    def logits(self, chunk: slice) -> Tensor:
        """Its logits (C, V) of these tokens, in float32."""
        return self.head.true_logits(self.f_ND[chunk])[:, : self.head.n_classes]


class Teacher:
    """An earlier checkpoint of this project, in evaluation mode. It is loaded at its first use, and is no part of the model that
    it teaches."""

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint
        self._model: Any = None

    def load(self, n_classes: int) -> None:
        """Load it. Raises OSError or ValueError for a checkpoint that is none, or has another vocabulary than ``n_classes``."""
        from . import SwapHeadForCausalLM, load_model

        model = load_model(self.checkpoint)
        if not isinstance(model, SwapHeadForCausalLM):
            raise ValueError("it is no model of this project")
        if model.lm_head.n_classes != n_classes:
            raise ValueError(f"it predicts {model.lm_head.n_classes} tokens and not {n_classes}")
        self._model = model.requires_grad_(False)

    @torch.no_grad()
    def __call__(self, n_classes: int, input_ids: Tensor, **arguments: Any) -> Taught:
        """Its features of a batch (B, T). ``arguments``: for its body."""
        if self._model is None:
            self.load(n_classes)
        self._model.to(input_ids.device)
        h_BTD = self._model.model(input_ids=input_ids, **arguments).last_hidden_state
        f_ND = self._model.lm_head.features(h_BTD.flatten(0, 1), torch.float32)
        return Taught(self._model.lm_head, f_ND)

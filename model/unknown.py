"""What a model does not know: positions whose hidden state is far from every class.

d_k = -z_k is the squared distance to class k in the head's own unit, g ||h - w_k||^2 of the metric head; it says so only for
heads whose logits are at most 0 (:attr:`Head.bounded`).

Shapes: B batch, N positions, C positions of one chunk, V vocabulary.
"""

from __future__ import annotations

import math
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from transformers.generation import StoppingCriteria

from .heads import Head


def nearest_distances(head: Head, f_ND: Tensor, rows: int) -> Tensor:
    """min_k d_k (N,) over the vocabulary, from features, ``rows`` positions at a time. Raises ValueError for a head without
    distances."""
    if not head.bounded:
        raise ValueError(f"{type(head).__name__} has no distances to its classes; use the metric head")
    return torch.cat([nearest_of(head.true_logits(f_CD)) for f_CD in f_ND.split(rows)])


def nearest_of(z: Tensor) -> Tensor:
    """min_k d_k (...) of true logits (..., V); infinite where they are not numbers, which is not known either."""
    largest = z.amax(-1).clamp(max=0)  # rounding may leave a class at the hidden state itself a logit above 0
    return (-largest).nan_to_num(nan=math.inf, posinf=math.inf)


def threshold_at(distance_N: Tensor, share: float) -> float:
    """The least of these distances that at most this share of them exceeds."""
    return distance_N.sort(descending=True).values[math.floor(share * len(distance_N))].item()


class StopAtUnknown(StoppingCriteria):
    """Ends a generated sequence at a token that was drawn from an unknown position; a context manager around ``generate``.

    ``unknown`` has a tensor (B,) for each generated token: whether the position it was drawn from is unknown. With
    ``stop=False`` that is all it does. Sequences that have ended are padded where the model has an ``eos_token_id``. Not for beam
    search, which reorders the sequences.
    """

    def __init__(self, head: Head, threshold: float, stop: bool) -> None:
        self.head, self.threshold, self.stop = head, threshold, stop
        self.unknown: list[Tensor] = []

    def __enter__(self) -> StopAtUnknown:
        self._handle = self.head.register_forward_hook(self._see)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()

    def _see(self, head: Any, arguments: Any, logits_BTV: Any) -> None:
        self.unknown.append(nearest_of(logits_BTV[:, -1]) > self.threshold)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """Which sequences (B,) end here."""
        return self.unknown[-1] if self.stop else torch.zeros_like(self.unknown[-1])

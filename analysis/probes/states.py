"""Where a model's hidden states are taken from, and what its head compares them with.

Shapes: T positions of a window, N positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from analysis.compare.text import Ids
from model import blocks
from model.head_cosine import CosineHead, directions
from model.head_metric import MetricHead
from model.head_von_mises_fisher import VonMisesFisherHead


def residual_stream(model: Any, x_T: Ids) -> list[Tensor]:
    """The hidden states (T, D) of one window: before the first block, after each block, and as the head gets them."""
    found: list[Tensor] = []

    def before(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.append(arguments[0] if arguments else named["hidden_states"])

    def after(_: nn.Module, __: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    body = model.base_model
    stack = blocks(body)
    handles = [stack[0].register_forward_pre_hook(before, with_kwargs=True)]
    handles += [block.register_forward_hook(after) for block in stack]
    try:
        last = body(input_ids=torch.from_numpy(x_T[None]).to(model.device), use_cache=False).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    return [h_BTD.reshape(-1, h_BTD.shape[-1]) for h_BTD in (*found, last)]


@contextmanager
def in_double(module: nn.Module) -> Iterator[None]:
    """Within the block a module whose parameters are float32 computes in float64."""
    module.double()
    try:
        yield
    finally:
        module.float()


def compared(model: Any, h_ND: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """The states (N, D) and the rows (V, D), in float64, that the head compares with each other.

    Of the metric head with its normalisations; of cosine and von Mises-Fisher heads the directions; of all others, guests
    included, the last hidden states and the output embeddings.
    """
    head = model.get_output_embeddings()
    with in_double(head):
        h_ND = h_ND.double()
        if isinstance(head, MetricHead):
            h_ND = head.features(h_ND, h_ND.dtype) / (2 * head.scale())
            w_VD = head.classes(h_ND.dtype)[0]
        elif isinstance(head, CosineHead | VonMisesFisherHead):
            h_ND, w_VD = directions(h_ND), directions(head.weight)
        else:
            w_VD = head.weight
        return h_ND, w_VD[:vocabulary].clone()

"""QK-clip: the projections of queries and keys shrink where attention logits are too large.

Shapes: B sequences, T positions, H query heads, G key heads (each serves H / G query heads), d width of a head, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from common.errors import InputError
from common.section import FLOAT32_MAX, MOST
from model.attention import CAUSAL, largest_logits, watch_attention
from model.sigma_reparam import is_reparametrised
from ranks.collectives import all_reduce
from record.metrics import Metric

from .base import INTERVENTIONS, Intervention, Seen, Update


@INTERVENTIONS.register("qk_clip")
class QKClip(Intervention):
    """Where a head's largest attention logit S is above the threshold, scales the weights and biases of its queries and keys by
    (threshold / S)^(1/2) each, after the step (Kimi K2, arXiv 2507.20534; Megatron-LM, core/optimizer/qk_clip.py).

    Heads that share a key share the scale of the largest of them. S is that of the step's own forward pass, over all ranks, from
    the first sequences of each micro-batch and at most 256 query positions of each, where the official code sees the whole batch.
    Only positive logits count. The optimizer's moments stay as they are.
    """

    metrics = (
        Metric("logit_max", "nats", "same", "largest attention logit that was seen in the step's forward pass"),
        Metric("heads", "1", "same", "key heads that were scaled", "rate"),
    )

    @dataclass(frozen=True)
    class Options:
        threshold: Annotated[float, Field(gt=0, le=FLOAT32_MAX)] = 100.0
        """Largest attention logit that is left alone, in nats."""
        every: Annotated[int, Field(ge=1, le=MOST)] = 1
        """Steps between two measurements; between them nothing is scaled."""
        sequences: Annotated[int, Field(ge=1, le=MOST)] = 4
        """Sequences of each micro-batch that are measured."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.measuring = False
        self.largest: dict[int, Tensor] = {}
        """Of the current step: S (G,) by layer."""

    def attach(self, model: Any, optimizer: Optimizer) -> Sequence[RemovableHandle]:
        self.layers = list(attention_layers(model.model))
        refuse(model.model, self.layers)
        return [watch_attention(layer, self._watcher(number)) for number, layer in enumerate(self.layers)]

    def _watcher(self, number: int) -> Any:
        def watch(query_BHTd: Tensor, key_BGTd: Tensor, scaling: float) -> None:
            if self.measuring:
                self._measure(number, query_BHTd, key_BGTd, scaling)

        return watch

    @torch.compiler.disable
    @torch.no_grad()
    def _measure(self, number: int, query_BHTd: Tensor, key_BGTd: Tensor, scaling: float) -> None:
        first = slice(self.options.sequences)
        with torch.autocast(query_BHTd.device.type, enabled=False):
            largest_H = largest_logits(query_BHTd[first], key_BGTd[first], scaling)
        largest_G = largest_H.unflatten(0, (key_BGTd.shape[1], -1)).amax(1)
        known_G = self.largest.get(number, largest_G)
        self.largest[number] = torch.maximum(known_G, largest_G)

    def begin(self, step: int) -> None:
        self.measuring = step % self.options.every == 0
        self.largest = {}

    @torch.no_grad()
    def on_weights(self, seen: Seen, update: Update) -> Mapping[str, Tensor] | None:
        if not self.measuring:
            return None
        sizes = [len(self.largest[number]) for number in range(len(self.layers))]
        largest_LG = torch.cat([self.largest[number] for number in range(len(self.layers))])
        all_reduce(largest_LG, "max")
        above_LG = (largest_LG > self.options.threshold) & largest_LG.isfinite() & update.taken
        factor_LG = torch.where(above_LG, self.options.threshold / largest_LG, 1.0).sqrt()
        for layer, factor_G in zip(self.layers, factor_LG.split(sizes), strict=True):
            scale_queries_and_keys(layer, factor_G)
        return {"logit_max": largest_LG.max(), "heads": above_LG.sum().float()}


def attention_layers(body: nn.Module) -> Iterator[nn.Module]:
    """The layers whose queries and keys are projected by q_proj and k_proj, or as in GPT-2 by one c_attn."""
    for module in body.modules():
        fused = isinstance(getattr(module, "c_attn", None), Conv1D) and not hasattr(module, "q_attn")
        if fused or (hasattr(module, "q_proj") and hasattr(module, "k_proj")):
            yield module


def refuse(body: Any, layers: Sequence[nn.Module]) -> None:
    """Raise InputError for a body whose attention cannot be measured or scaled."""
    kind = body.config.model_type
    reason = None
    if not layers:
        reason = f"finds no q_proj and k_proj, nor GPT-2's c_attn, in a body of the type {kind}; leave it out"
    elif any("norm" in name and name[0] in "qk" for layer in layers for name, _ in layer.named_children()):
        reason = (
            f"has no effect on {kind}, which normalises queries and keys: that bounds the logits already; leave it out"
        )
    elif body.config._attn_implementation != CAUSAL:
        reason = f"cannot measure {kind}, which does not attend to the whole past through transformers' interface; leave it out"
    elif is_reparametrised(body):
        reason = (
            "cannot scale the heads of body.sigma_reparam, whose matrices have one norm each; leave one of the two out"
        )
    elif any(isinstance(p, DTensor) for p in body.parameters()):
        reason = "cannot scale sharded weights; launch without FSDP"
    if reason is not None:
        raise InputError(f"interventions: qk_clip {reason}")


def scale_queries_and_keys(layer: Any, factor_G: Tensor) -> None:
    """Multiply the queries and keys of each key head's group by its factor, in place. A factor of 1 changes nothing."""
    if hasattr(layer, "c_attn"):
        weight, bias = layer.c_attn.weight, layer.c_attn.bias  # (D, 3 D): columns of queries, keys and values
        width = weight.shape[1] // 3
        one = factor_G.repeat_interleave(width // len(factor_G))
        columns = torch.cat([one, one])
        weight[:, : 2 * width].mul_(columns)
        bias[: 2 * width].mul_(columns)
        return
    for projection in (layer.q_proj, layer.k_proj):
        rows = factor_G.repeat_interleave(projection.out_features // len(factor_G))
        projection.weight.mul_(rows[:, None])
        if projection.bias is not None:
            projection.bias.mul_(rows)
